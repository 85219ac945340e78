"""The formats of image files that are read. Below a folder, endings choose the files; the content decides how to open.

Pillow decodes these formats itself, and refuses truncated files. It starts another program for PostScript, decodes
truncated JPEG 2000 without an error, accepts any bytes as some formats without a signature, such as TGA, and cannot
read HEIC and SVG.
"""

_ENDINGS = {  # by Pillow's name of the format
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
PILLOW_FORMATS = tuple(_ENDINGS)
IMG_EXTENSIONS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
NO_IMAGES = (  # texts beside images; a folder may have them without a warning
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".py", ".sh",
    "thumbs.db", "desktop.ini",
)  # fmt: skip
