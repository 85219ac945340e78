"""The image formats that are read. The extension selects the files in a folder, and the content selects the decoder.

Pillow decodes these formats itself and refuses truncated files. All other formats are refused: Pillow starts another
program for PostScript, decodes truncated JPEG 2000 without an error, accepts any bytes as a format without a signature
such as TGA, and cannot read HEIC and SVG.
"""

_ENDINGS = {  # extensions by the name of the format in Pillow
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
NO_IMAGES = (  # text files, which are ignored without a warning
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".py", ".sh",
    "thumbs.db", "desktop.ini",
)  # fmt: skip
