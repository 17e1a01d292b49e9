"""Commands on networks: zoo, bench."""

import sys
from typing import Annotated, Any

import typer

from fieldmark.cli.options import JsonOption, recipe_options
from fieldmark.cli.output import print_result
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe


@recipe_options("attention", "after", "head", "aux", "image_size", "channels")
def zoo(
    network: Annotated[
        str | None,
        typer.Argument(metavar="[NETWORK]", help="A network, as resnet50 or efficientnet_lite0+after=-1:mask."),
    ] = None,
    name_filter: Annotated[
        str, typer.Option("--like", metavar="WORD", help="Only networks with this in their name.")
    ] = "",
    measure_speed: Annotated[
        bool, typer.Option("--speed", help="Measure the images per second of each network, one at a time.")
    ] = False,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Number of classes of the one network.")] = 1000,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """List every network; or the layers of one, which phase trains them, and what its attention adds."""
    from fieldmark.cli import zoo as showcase

    overrides = {name: value for name, value in settings.items() if value is not None}
    if network is None and (overrides or classes != 1000):
        raise FieldmarkError("these options describe one network: name it, as in fieldmark zoo resnet50 --after -1:se")
    if network is not None and (name_filter or measure_speed):
        raise FieldmarkError(f"--like and --speed are for the list: fieldmark bench {network} times one network")
    Recipe(**overrides)  # validates as a training does
    rows, text = (
        showcase.describe_network(network, classes=classes, **overrides)
        if network
        else showcase.list_networks(name_filter, measure_speed)
    )
    print(io.to_json(rows) if as_json else text)


def bench(
    network: Annotated[str, typer.Argument(metavar="NETWORK")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 1,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Input size in pixels; by default the network's own.")
    ] = None,
    training: Annotated[bool, typer.Option("--train", help="Time training steps, not forward passes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the speed of a network: 10 warm-up runs, 100 timed; mean and standard deviation."""
    from fieldmark.cli.bench import benchmark_network as measure

    result = measure(network, batch, image_size, training, lambda text: print(text, file=sys.stderr))
    seconds = f"{result.mean_seconds:.4f} +/- {result.sd_seconds:.4f} s a batch"
    print_result(result.to_dict(), [f"{seconds}, {result.images_per_second:.1f} images/s"], [], as_json)
