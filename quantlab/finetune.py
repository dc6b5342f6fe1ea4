"""``quantlab finetune model=minilm task=docmatch training=qat``: trains once, for every later trial."""

from omegaconf import DictConfig

from quantlab.cli.errors import compact_errors
from quantlab.cli.hydra_command import hydra_command
from quantlab.cli.signals import end_on_sigterm


@hydra_command("finetune")
def main(settings: DictConfig) -> None:
    """Builds the components and trains."""
    # Imported here, so that help and errors of the command line do not wait for torch.
    from hydra.utils import instantiate

    from quantlab.cli.console import plain_console
    from quantlab.machine.allocator import keep_freed_memory
    from quantlab.sweeping.training_run import TrainingConfig

    keep_freed_memory()
    with compact_errors():
        config: TrainingConfig = instantiate(settings)
        config.run(plain_console())


if __name__ == "__main__":
    end_on_sigterm()
    main()
