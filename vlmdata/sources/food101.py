"""Food-101: pictures of dishes in 101 classes.

Link: https://huggingface.co/datasets/ethz/food101 (Bossard et al., ECCV 2014).
Licence: unknown; the pictures are from foodspotting.com.

Raw row: ``{"image": {"bytes": ..., "path": ...}, "label": 6}``; a class name in place of the number in JSON and in
image folders (one subfolder for each class).

Record: the picture with the default question "What food is this?" (``prompt``; "" leaves the picture alone), the
class name in words as the answer, and the class index as ``label``.

The training part is noisy on purpose, and the published files are ordered by class: choose a part with
``shuffle_seed``, not with ``limit`` alone.

Rejected: a label outside the class names, an image without bytes.
"""

from __future__ import annotations

from vlmdata.errors import RecordError
from vlmdata.fields import image_value, shown
from vlmdata.records import Message, Record, Sample, image, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_PROMPT = "What food is this?"

# In the order of the published class indices: alphabetical, but 16 cheesecake stands before 17 cheese_plate.
_NAMES = (
    "apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding "
    "breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheesecake cheese_plate "
    "chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder "
    "club_sandwich crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame "
    "eggs_benedict escargots falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup "
    "french_toast fried_calamari fried_rice frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich "
    "grilled_salmon guacamole gyoza hamburger hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna "
    "lobster_bisque lobster_roll_sandwich macaroni_and_cheese macarons miso_soup mussels nachos omelette "
    "onion_rings oysters pad_thai paella pancakes panna_cotta peking_duck pho pizza pork_chop poutine prime_rib "
    "pulled_pork_sandwich ramen ravioli red_velvet_cake risotto samosa sashimi scallops seaweed_salad "
    "shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls steak strawberry_shortcake sushi tacos "
    "takoyaki tiramisu tuna_tartare waffles"
)


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One labelled picture as a conversation."""
    names = options.label_names or SOURCE.label_names
    label = _index(row.get("label"), names)
    prompt = _PROMPT if options.prompt is None else options.prompt
    words = (text(prompt),) if prompt.strip() else ()
    content = (image(), *words) if options.image_position == "first" else (*words, image())
    messages = (Message("user", content), Message("assistant", (text(names[label].replace("_", " ")),)))
    return [Sample(row_id, (image_value(row.get("image")),), messages, "food101", label=label)]


def _index(label: object, names: tuple[str, ...]) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    raise RecordError(
        "unknown_label", f"{shown(label)} is neither one of {len(names)} class names nor an index below that"
    )


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"image", "label"}),),
    convert=convert,
    url="https://huggingface.co/datasets/ethz/food101",
    hub_id="ethz/food101",
    licence="unknown",
    summary="pictures of dishes in 101 classes, with label",
    prompt=_PROMPT,
    label_names=tuple(_NAMES.split()),
)
