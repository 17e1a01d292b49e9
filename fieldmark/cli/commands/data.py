"""Commands on a dataset before training: look, check, pack."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fieldmark.cli.options import (
    CHECK_OUT_HELP,
    JsonOption,
    PhotosArgument,
    RecipeOption,
    make_recipe,
    recipe_options,
)
from fieldmark.cli.output import print_result
from fieldmark.core import io
from fieldmark.core.progress import Reporter

LOOK_FIELDS = (
    *("quality", "backbone", "weights", "image_size", "train_size", "pad", "channels", "augment", "seed", "lang"),
    *("group_by", "split_file", "apply", "crop_boxes"),
)


@recipe_options(*LOOK_FIELDS)
def look(
    photos: PhotosArgument,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for the page.")],
    count: Annotated[int, typer.Option("--count", min=1, max=200, help="Number of images on it.")] = 12,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Count the images of each class and show some, as evaluated and as augmented."""
    from fieldmark.pipeline.preview import preview as show
    from fieldmark.report.preview_page import summary_lines

    io.require_new(Path(out))
    result = show(photos, make_recipe(recipe, settings), count, Path(out), Reporter())
    lines = [*summary_lines(result), *(f"Written: {file}" for file in result.files)]
    print_result(result.to_dict(), lines, result.warnings, as_json)
    raise typer.Exit(1 if result.has_errors else 0)


@recipe_options("group_by", "split_file", "apply", "crop_boxes", "lang")
def check(
    photos: PhotosArgument,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help=CHECK_OUT_HELP)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the search for label errors, the slowest part.")] = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Audit a dataset before training; changes no file. Exit code 1 if there are issues."""
    from fieldmark.audit.check import check as run_check
    from fieldmark.report.check_page import summary_lines, write_check

    folder = Path(out) if out else None
    if folder:
        io.require_new(folder)
    recipe = make_recipe(None, settings)
    result = run_check(photos, Reporter(), recipe, quick=quick)
    files = write_check(result, folder, recipe.lang) if folder else []
    lines = [*summary_lines(result.report), *(f"Written: {file}" for file in files)]
    print_result(result.report.to_dict(), lines, result.report.warnings, as_json)
    raise typer.Exit(1 if result.report.has_issues else 0)


@recipe_options("group_by", "split_file", "apply", "seed")
def pack(
    photos: PhotosArgument,
    shards: Annotated[str, typer.Option("--shards", metavar="DIR", help="New folder for the shards.")],
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Approximate size of a shard in MiB.")] = 256,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Pack images into WebDataset shards for training on many machines. Exit code 1 if one is unreadable."""
    from fieldmark.data.pack import BYTES_PER_MIB, write_shards

    result = write_shards(photos, Path(shards), Reporter(), make_recipe(None, settings), shard_mb)
    summary = f"{result.n_images:,} photos, {result.n_bytes / BYTES_PER_MIB:,.0f} MiB in {len(result.files) - 1} shards"
    print_result(result.to_dict(), [f"{summary}: {shards}"], result.warnings, as_json)
    raise typer.Exit(1 if result.unreadable else 0)
