"""Commands about kernels: `jupyter-env doctor` and `jupyter-env kernelspec`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jupyter_env.forkserver.detect import Feature, features

kernelspec_app = typer.Typer(help="Forked kernels for Jupyter, nbclient and papermill.", no_args_is_help=True)

_DEFAULT_NAME = "python3-forked"
Name = Annotated[str, typer.Option(help="Of the kernelspec, as in `papermill -k NAME`.")]
InPrefix = Annotated[bool, typer.Option("--sys-prefix", help="In this Python's environment instead of your home.")]


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Say what this host gives for the isolation of kernels, what is missing, and what that means.

    Exit code 0: kernels are isolated; 1: they are not.

    Example: `jupyter-env doctor`
    """
    found = features()
    isolated = not any(feature.problem and feature.required for feature in found)
    if as_json:
        typer.echo(json.dumps({"isolated": isolated, "features": [feature._asdict() for feature in found]}))
    else:
        console = Console(emoji=False)
        console.print(_table(found))
        console.print(_conclusion(found, isolated))
    raise typer.Exit(0 if isolated else 1)


def _table(found: tuple[Feature, ...]) -> Table:
    table = Table("Feature", "Here", "Without it")
    for feature in found:
        table.add_row(feature.name, f"[red]no: {feature.problem}" if feature.problem else "[green]yes", feature.meaning)
    return table


def _conclusion(found: tuple[Feature, ...], isolated: bool) -> str:
    if not isolated:
        return (
            "Kernels are not isolated here: code runs as you, with your files and your network. See docs/security.md."
        )
    if any(feature.problem for feature in found):
        return "Kernels are isolated, but for what is missing above. See docs/security.md."
    return "Kernels are isolated in full. What that covers and what it does not: docs/security.md."


@kernelspec_app.command()
def install(
    name: Name = _DEFAULT_NAME,
    isolated: Annotated[
        bool,
        typer.Option(help="No network, a user of its own, and changes to the notebook's folder kept in memory."),
    ] = False,
    preload: Annotated[
        str, typer.Option(help="Modules to import ahead, separated by commas. Default: the usual data stack.")
    ] = "",
    python: Annotated[
        str, typer.Option(help="Interpreter of the kernels; it needs ipykernel.", metavar="PATH")
    ] = sys.executable,
    sys_prefix: InPrefix = False,
) -> None:
    """Install a kernelspec whose kernels are forked: the second one starts in tens of milliseconds.

    Example: `jupyter-env kernelspec install` and then `papermill -k python3-forked in.ipynb out.ipynb`
    """
    from jupyter_client.kernelspec import KernelSpecManager

    config: dict[str, object] = {"isolated": isolated, "python": python}
    if preload:
        config["preload"] = [module.strip() for module in preload.split(",")]
    spec = {
        # Never run: the provisioner forks. Jupyter wants one all the same.
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": f"Python 3 (forked{', isolated' if isolated else ''})",
        "language": "python",
        "metadata": {"kernel_provisioner": {"provisioner_name": "jupyter-env-fork", "config": config}},
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.json").write_text(json.dumps(spec, indent=1))
        where = KernelSpecManager().install_kernel_spec(
            folder, name, user=not sys_prefix, prefix=sys.prefix if sys_prefix else None
        )
    typer.echo(f"Installed {name} in {where}")


@kernelspec_app.command()
def remove(name: Name = _DEFAULT_NAME) -> None:
    """Remove the kernelspec."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        typer.echo(f"Removed {KernelSpecManager().remove_kernel_spec(name)}")
    except (NoSuchKernel, KeyError):
        typer.echo(f"there is no kernelspec {name}; see `jupyter kernelspec list`", err=True)
        raise typer.Exit(2) from None
