"""Labels: the order of class names, and evaluations with an accuracy that follows from the network's outputs."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights

import test as script
from isonet import build_model, load_cfg
from isonet.classes import in_order, wordnet_ids
from isonet.data.folders import FolderSource, image_folder
from isonet.data.shards.writer import make_plan, write_shards
from isonet.data.sources import digits
from isonet.errors import DataError, UserError
from isonet.files.checkpoint import save_checkpoint
from isonet.tools.trained import class_names, evaluate_on_ranks, load_trained
from isonet.training.distributed import ALONE

COUNT = 96  # images
NUMBERS = [str(number) for number in range(12)]  # as text, 10 precedes 2
LETTERS = [unicodedata.normalize("NFC", name) for name in ["z", "é", "ö", "o", "a", "ñ", "n", "y", "b", "c", "d", "å"]]
DECOMPOSED = [unicodedata.normalize("NFD", name) for name in LETTERS]


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["010", "002", "1"], ["1", "002", "010"]),
        (["99999999999999999999", "3"], ["3", "99999999999999999999"]),
        (["10", "2", "a"], ["10", "2", "a"]),
        (["-1", "10", "2"], ["-1", "10", "2"]),
        (["2", "\u0661"], ["2", "\u0661"]),
        (["f", "e\u0301"], ["f", "é"]),
    ],
)
def test_numbers_are_ordered_as_numbers_and_other_names_as_composed_text(names, ordered):
    assert in_order(names) == in_order(names[::-1]) == ordered


def test_ids_of_imagenet_equal_timms_in_the_order_of_torchvisions_names():
    found = importlib.util.find_spec("timm")  # importing timm takes seconds
    if found is None:
        pytest.skip("timm is not installed")
    folder = Path(found.origin).parent / "data/_info"
    assert list(wordnet_ids()) == (folder / "imagenet_synsets.txt").read_text().split() == sorted(wordnet_ids())
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    lemmas = dict(line.lower().replace("-", " ").split("\t") for line in lines)
    names = [name.lower().replace("-", " ") for name in ResNet18_Weights.DEFAULT.meta["categories"]]
    others = [name for each, name in zip(wordnet_ids(), names, strict=True) if name not in lemmas[each]]
    assert others == [
        "crane bird",
        "maillot tank suit",
    ]  # torchvision distinguishes them from other classes of the same name


class Bench:
    """A network with random weights, images, and the label of each image.

    The label equals the first guess of the network for five of six images. logits: (N, outputs).
    """

    def __init__(self, root, outputs):
        self.root, self.outputs = root, outputs
        self.opts = ["DATASET.ROOT", str(root), "DATASET.NAME", "set", "DATASET.NUM_CLASSES", outputs,
                     "DATASET.IMAGE_SIZE", 8, "DATASET.NUM_WORKERS", 0, "ISON.DEPTH", 8]  # fmt: skip
        self.cfg = root / "a.yaml"
        self.cfg.write_text(load_cfg(None, self.opts).dump())
        torch.manual_seed(0)
        self.model = build_model(load_cfg(None, self.opts)).eval()
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
        with torch.no_grad():
            self.model.head.fc.weight.normal_()
            self.logits = self.model(self.normalised()).numpy()
            self.model.head.fc.bias -= torch.from_numpy(self.logits.mean(0))  # so that every output is a first guess
            self.logits = self.model(self.normalised()).numpy()
        guesses = self.logits.argmax(1)
        self.labels = np.where(np.arange(COUNT) % 6 == 0, (guesses + 1) % outputs, guesses)
        if outputs < 20:
            self.labels[:outputs] = range(outputs)

    def normalised(self):
        mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
        return torch.from_numpy(((self.pixels / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)

    def write(self, names, split="val", only=None):
        """Write the images into folders with the names of their labels."""
        for index, label in enumerate(self.labels):
            if only is None or label in only:
                place = self.root / "set" / split / names[label]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(self.pixels[index]).save(place / f"{index}.png")

    def checkpoint(self, classes=None):
        named = {"classes": classes, "config": self.cfg.read_text()} if classes else {}
        save_checkpoint(self.root / "a.pt", {"net": self.model.state_dict(), **named})
        return self.root / "a.pt"

    def top1(self, only=None):
        """Return top-1 in percent of the images with the labels ``only``, among all outputs and among these."""
        rows = np.ones(COUNT, bool) if only is None else np.isin(self.labels, only)
        among = np.full_like(self.logits, -np.inf)
        among[:, sorted({*self.labels[rows]})] = self.logits[:, sorted({*self.labels[rows]})]
        return [100 * float(np.mean(each.argmax(1)[rows] == self.labels[rows])) for each in (self.logits, among)]

    def evaluate(self, *opts, classes=None):
        devices = [torch.device("cpu")]
        return evaluate_on_ranks(str(self.root / "a.pt"), str(self.cfg), ALONE, devices, opts, classes)[0]


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path, 12)
    assert 60 < made.top1()[0] < 90
    return made


@pytest.mark.parametrize(
    ("named", "folders", "how"),
    [
        (None, NUMBERS, "order of the folders"),
        (None, [str(number + 1) for number in range(12)], "order of the folders"),
        (None, [f"{number:04}" for number in range(12)], "order of the folders"),
        (sorted(NUMBERS), sorted(NUMBERS), "names"),  # a checkpoint of a former version
        (NUMBERS[::-1], NUMBERS[::-1], "names"),
        (LETTERS, DECOMPOSED, "names"),
        (DECOMPOSED, LETTERS, "names"),
    ],
)
def test_labels_are_the_outputs_of_the_names(bench, named, folders, how):
    bench.write(folders)
    bench.checkpoint(named)
    found = bench.evaluate()
    assert (found.top1, found.labels, found.classes_present) == (pytest.approx(bench.top1()[0]), how, None)


def test_a_training_folder_and_a_file_of_names_have_their_own_order(bench):
    bench.write(LETTERS)
    bench.checkpoint()
    names = bench.root / "names.txt"
    names.write_text("\ufeff" + "\r\n".join(DECOMPOSED) + "\r\n", encoding="utf-8")
    found = bench.evaluate(classes=str(names))
    assert (found.top1, found.labels) == (pytest.approx(bench.top1()[0]), "names")
    bench.write(NUMBERS, only=[2, 10, 11])
    with pytest.raises(DataError, match="val/10: not one of the 12 classes"):
        bench.evaluate(classes=str(names))


def test_a_file_with_the_names_of_the_checkpoint_in_another_order_is_refused(bench):
    names = bench.root / "names.txt"
    bench.write(LETTERS)
    bench.checkpoint(LETTERS)
    for own in (LETTERS, DECOMPOSED):
        names.write_text("\n".join(own), encoding="utf-8")
        assert bench.evaluate(classes=str(names)).top1 == pytest.approx(bench.top1()[0])
    names.write_text("\n".join([LETTERS[0], *DECOMPOSED[:0:-1]]), encoding="utf-8")
    with pytest.raises(UserError, match=r"another order: line 2 .*--classes"):
        bench.evaluate(classes=str(names))


def test_shards_of_numbers_of_this_and_of_a_former_version(bench):
    bench.write(NUMBERS)
    folder = image_folder(bench.root / "set", "val")
    assert folder.classes == NUMBERS
    order = sorted(NUMBERS)
    former = FolderSource(folder.paths, [order.index(NUMBERS[label]) for label in folder.labels], order)
    for source, classes in ((folder, None), (former, None), (former, order)):
        plan = make_plan(source, bench.root / "set/val", False, 0, 50)
        index = write_shards(plan, bench.root / "set/shards/val", overwrite=True)
        assert index.classes == source.classes
        bench.checkpoint()
        assert bench.evaluate("RUNTIME.INPUT", "shards").top1 == pytest.approx(bench.top1()[0])
        if classes:
            weights = bench.model.head.fc.weight.data[[int(name) for name in classes]]
            bias = bench.model.head.fc.bias.data[[int(name) for name in classes]]
            state = {**bench.model.state_dict(), "head.fc.weight": weights, "head.fc.bias": bias}
            save_checkpoint(bench.root / "a.pt", {"model": state, "classes": classes})
            found = bench.evaluate("RUNTIME.INPUT", "shards")
            assert (found.top1, found.labels) == (pytest.approx(bench.top1()[0]), "names")


@pytest.mark.parametrize("form", ["{}", "{}_tench", "000_{}", "{} of mine"])
def test_a_subset_of_imagenet_is_labelled_by_its_ids_and_has_both_accuracies(tmp_path, form):
    bench = Bench(tmp_path, 1000)
    ids = [form.format(each).replace("n", "N" if "_" in form else "n", 1) for each in wordnet_ids()]
    present = sorted({*bench.labels[::6]})  # the network gives other first guesses for some of them
    bench.write(ids, only=present)
    bench.checkpoint()
    found, (top1, among) = bench.evaluate(), bench.top1(present)
    assert among > top1 + 2
    assert (found.top1, found.top1_present) == (pytest.approx(top1), pytest.approx(among))
    assert (found.classes_present, found.labels) == (len(present), "WordNet ids")


def test_a_subset_of_named_classes_has_both_accuracies_in_json_and_the_log(bench, capsys, monkeypatch):
    bench.write(LETTERS, only=[1, 4, 9])
    bench.checkpoint(LETTERS)
    monkeypatch.chdir(bench.root)
    script.main(script.parse_args(["--ckpt", "a.pt", "--json", "a.json"]))
    found, (top1, among) = json.loads((bench.root / "a.json").read_text()), bench.top1([1, 4, 9])
    assert found["top1"] == pytest.approx(top1) != pytest.approx(among) == found["top1_present"]
    assert (found["classes_present"], found["top5_present"], found["labels"]) == (3, 100, "names")
    text = capsys.readouterr().out
    assert f"top-1 {top1:.2f} %" in text
    assert f"among the 3 classes of the images: top-1 {among:.2f} %" in text


@pytest.mark.parametrize(
    ("named", "folders", "words"),
    [
        (None, ["3", "7", "10"], ["3, 7, 10", "--classes"]),
        (None, ["1", "2", "3"], ["1, 2, 3", "--classes"]),  # the outputs 1 to 3, or counted from 1
        (LETTERS, ["z", "other"], ["val/other", "12 classes", "z, é"]),
        (["a", *LETTERS[1:]], ["z"], ["called a"]),
        (None, ["é", "e\u0301"], [r"'e\u0301' and '\xe9'"]),
        (None, ["1", "01"], ["'01' and '1'", "number"]),
        (None, [f"c{number}" for number in range(13)], ["13 classes", "NUM_CLASSES is 12"]),
    ],
)
def test_labels_that_cannot_be_known_are_refused_in_one_sentence(bench, named, folders, words):
    for name in folders:
        (bench.root / "set/val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(bench.root / "set/val" / name / "1.png")
    bench.checkpoint(named)
    with pytest.raises(DataError) as error:
        bench.evaluate()
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "folders",
    [
        [*wordnet_ids()[:3], "lost+found"],
        [*wordnet_ids()[:3], "n00000001"],
        [*wordnet_ids()[:3], "n01440764_again"],
        ["n00000001", "n00000002"],
    ],
)
def test_folders_that_are_not_the_ids_of_imagenet_are_refused(tmp_path, folders):
    bench = Bench(tmp_path, 1000)
    bench.checkpoint()
    for name in folders:
        (tmp_path / "set/val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set/val" / name / "1.png")
    with pytest.raises(DataError, match=r"WordNet.*--classes"):
        bench.evaluate()


def test_fewer_folders_than_outputs_give_a_warning_of_a_guess(bench, caplog):
    bench.write(LETTERS, only=[0, 1])
    bench.checkpoint()
    assert bench.evaluate().labels == "order of the folders"
    assert any("guess" in line and "--classes" in line for line in caplog.messages)


def test_digits_are_labelled_by_name_or_refused(tmp_path):
    """A network that always predicts its first output is right for the digit of that name."""
    cfg = load_cfg(None, ["DATASET.NAME", "digits", "DATASET.NUM_CLASSES", 11, "ISON.DEPTH", 8])
    state = build_model(cfg).state_dict()
    state["head.fc.weight"].zero_()
    state["head.fc.bias"][0] = 1

    def top1(classes, file=None):
        named = {"classes": classes} if classes else {}
        save_checkpoint(tmp_path / "a.pt", {"model": state, "config": cfg.dump(), **named})
        found = evaluate_on_ranks(str(tmp_path / "a.pt"), None, ALONE, [torch.device("cpu")], (), file)[0]
        assert (found.classes_present, found.top1_present is None) == (10, False)
        return found.top1

    share = 100 * np.bincount(digits("val").labels) / 360
    assert len(set(share)) > 1
    names = ["4", "ten", "0", "9", "8", "7", "6", "5", "3", "2", "1"]
    assert top1(names) == pytest.approx(share[4])
    assert top1(None) == pytest.approx(share[0])
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    with pytest.raises(DataError, match=r"0: not one of the 11 classes.*zero.*--classes"):
        top1(words)
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert top1(words, str(tmp_path / "names.txt")) == pytest.approx(share[4])


@pytest.mark.parametrize(
    ("opts", "known", "names"),
    [
        (["DATASET.NAME", "ILSVRC2012", "DATASET.NUM_CLASSES", 1000], None, [*wordnet_ids()]),
        (["DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 3], None, ["0", "1", "2"]),
        (["DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 3], ["1", "2"], ["1", "2", "output 2"]),
    ],
)
def test_names_of_the_outputs(tmp_path, opts, known, names):
    cfg = load_cfg(None, [*opts, "DATASET.IMAGE_SIZE", 8, "ISON.DEPTH", 8])
    named = {"classes": known} if known else {}
    save_checkpoint(tmp_path / "a.pt", {"model": build_model(cfg).state_dict(), "config": cfg.dump(), **named})
    assert class_names(load_trained(str(tmp_path / "a.pt"))) == names


@pytest.mark.parametrize(("lines", "word"), [(11, "11 classes"), (0, "0 classes"), (None, "cannot be read")])
def test_a_wrong_file_of_names_is_refused_before_the_network_is_read(bench, lines, word):
    file = bench.root / "names.txt"
    if lines is not None:
        file.write_text("".join(f"{name}\n" for name in LETTERS[:lines]))
    (bench.root / "a.pt").touch()  # no checkpoint yet
    args = ["--cfg", str(bench.cfg), "--ckpt", str(bench.root / "a.pt"), "--classes", str(file)]
    with pytest.raises(UserError, match=word):
        script.main(script.parse_args(args))
