"""RoBERTa: BERT's layers, the dense layer inside the classifier."""

from quantlab.network.families.bert import bert_like

FAMILY = bert_like("roberta", "classifier.dense", "classifier.out_proj")
