"""Tags that say what computed a trial's answers, and what of its inputs was incomplete."""

from collections.abc import Mapping

from quantlab.engines.integer import LinearExecution
from quantlab.plan.plan import QuantPlan
from quantlab.tasks.heads import IMAGES
from quantlab.tasks.image_files import processor_gaps
from quantlab.trial.material import Material
from quantlab.trial.result import REFERENCE


def processor_tags(material: Material) -> dict[str, str]:
    """Returns the tag ``processor_mismatch`` if an image processor leaves out a step."""
    gaps = processor_gaps(material.loaded.processor) if material.task.head == IMAGES else ""
    return {"processor_mismatch": gaps} if gaps else {}


def engine_tags(plan: QuantPlan, linears: Mapping[str, LinearExecution]) -> dict[str, str]:
    """Returns the tags that say what computed the answers.

    ``engine`` is ``fp32`` if nothing is quantized, ``integer`` if at least one Linear ran in integers, else
    ``simulated``.
    """
    if plan == QuantPlan():
        return {"engine": REFERENCE}
    kernels = [linear.on for linear in linears.values() if linear.in_integers]
    if not kernels:
        return {"engine": "simulated"}
    return {
        "engine": "integer",
        "integer_linears": f"{len(kernels)} of {len(linears)}",
        "integer_kernels": ", ".join(sorted(set(kernels))),
    }
