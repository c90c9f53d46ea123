"""python -m tools.page_steps: join pictures of the page (tools.page_pictures) into one that shows its steps."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from tinyrm.command_line import parse

# Picture of the page, and what it shows.
STEPS = (
    ("desktop", "1  Compare two responses: an example, or your own"),
    ("differences", "2  See where they differ"),
    ("ranking", "3  Rank several responses"),
    ("file", "4  Score a file of pairs in the browser"),
)
WIDTH, CAPTION, SECONDS, COLOURS = 1000, 52, 3, 96


@dataclass(frozen=True)
class Options:
    """Join pictures of the page into one that shows its steps."""

    folder: Path = Path("docs/images")
    """Folder of the pictures page-NAME.png, and for page-steps.gif."""


def main(arguments: list[str] | None = None) -> int:
    folder = parse(Options, arguments, prog="python -m tools.page_steps").folder
    frames = [frame(folder / f"page-{name}.png", caption) for name, caption in STEPS]
    frames[0].save(
        folder / "page-steps.gif",
        save_all=True,
        append_images=frames[1:],
        duration=1000 * SECONDS,
        loop=0,
        optimize=True,
    )
    return 0


def frame(picture: Path, caption: str) -> Image.Image:
    shot = Image.open(picture).convert("RGB")
    shot = shot.resize((WIDTH, round(WIDTH * shot.height / shot.width)), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", (WIDTH, shot.height + CAPTION), "#1d2430")
    whole.paste(shot, (0, CAPTION))
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 22)
    ImageDraw.Draw(whole).text((20, 13), caption, fill="#ffffff", font=font)
    return whole.quantize(COLOURS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    raise SystemExit(main())
