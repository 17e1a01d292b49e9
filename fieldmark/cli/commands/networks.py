"""The networks of the zoo, and how fast they are."""

import sys
from typing import Annotated, Any

import typer

from fieldmark.cli.options import Json
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe


def zoo(
    network: Annotated[
        str | None,
        typer.Argument(metavar="[NETWORK]", help="A network, as resnet50 or efficientnet_lite0+after=-1:mask."),
    ] = None,
    like: Annotated[str, typer.Option("--like", metavar="WORD", help="Networks with this in their name alone.")] = "",
    speed: Annotated[bool, typer.Option("--speed", help="Time each network too: photos a second, one by one.")] = False,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes of the one network.")] = 1000,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """List every network; or the layers of one, what fine-tuning trains of them, and what its attention adds."""
    from fieldmark.cli import zoo as showcase

    asked = {name: value for name, value in settings.items() if value is not None}
    if network is None and (asked or classes != 1000):
        raise FieldmarkError("these options describe one network: name it, as in fieldmark zoo resnet50 --after -1:se")
    if network is not None and (like or speed):
        raise FieldmarkError(f"--like and --speed are for the list: fieldmark bench {network} times one network")
    Recipe(**asked)  # refuses what a training would
    rows, text = showcase.network(network, classes=classes, **asked) if network else showcase.networks(like, speed)
    print(io.text(rows) if as_json else text)


def bench(
    network: Annotated[str, typer.Argument(metavar="NETWORK")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Photos in a batch.")] = 1,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Pixels; without it, the network's own.")
    ] = None,
    training: Annotated[bool, typer.Option("--train", help="Time forward and backward, not forward alone.")] = False,
    as_json: Json = False,
) -> None:
    """Time a network: 10 runs to warm up, 100 timed; mean and standard deviation."""
    from fieldmark.cli.bench import bench as measure

    found = measure(network, batch, image_size, training, lambda text: print(text, file=sys.stderr))
    if as_json:
        print(io.text(found))
    else:
        print(f"{found['mean_s']:.4f} +/- {found['sd_s']:.4f} s a batch, {found['images_per_s']:.1f} images/s")
