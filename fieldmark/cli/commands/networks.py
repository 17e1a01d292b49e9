"""The networks of the zoo, and how fast they are."""

import sys
from typing import Annotated, Any

import typer

from fieldmark.cli.options import JsonOption
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe


def zoo(
    network: Annotated[
        str | None,
        typer.Argument(metavar="[NETWORK]", help="A network, as resnet50 or efficientnet_lite0+after=-1:mask."),
    ] = None,
    name_filter: Annotated[
        str, typer.Option("--like", metavar="WORD", help="Networks with this in their name alone.")
    ] = "",
    measure_speed: Annotated[
        bool, typer.Option("--speed", help="Time each network too: photos a second, one by one.")
    ] = False,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes of the one network.")] = 1000,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """List every network; or the layers of one, what fine-tuning trains of them, and what its attention adds."""
    from fieldmark.cli import zoo as showcase

    overrides = {name: value for name, value in settings.items() if value is not None}
    if network is None and (overrides or classes != 1000):
        raise FieldmarkError("these options describe one network: name it, as in fieldmark zoo resnet50 --after -1:se")
    if network is not None and (name_filter or measure_speed):
        raise FieldmarkError(f"--like and --speed are for the list: fieldmark bench {network} times one network")
    Recipe(**overrides)  # refuses what a training would
    rows, text = (
        showcase.describe_network(network, classes=classes, **overrides)
        if network
        else showcase.list_networks(name_filter, measure_speed)
    )
    print(io.to_json(rows) if as_json else text)


def bench(
    network: Annotated[str, typer.Argument(metavar="NETWORK")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Photos in a batch.")] = 1,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Pixels; without it, the network's own.")
    ] = None,
    training: Annotated[bool, typer.Option("--train", help="Time forward and backward, not forward alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time a network: 10 runs to warm up, 100 timed; mean and standard deviation."""
    from fieldmark.cli.bench import benchmark_network as measure

    result = measure(network, batch, image_size, training, lambda text: print(text, file=sys.stderr))
    if as_json:
        print(io.to_json(result))
    else:
        print(f"{result['mean_s']:.4f} +/- {result['sd_s']:.4f} s a batch, {result['images_per_s']:.1f} images/s")
