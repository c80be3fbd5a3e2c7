"""Twenty concepts, and words by which a reader knows a feature that is about one: written without a look at search.

`python tests/concepts.py RUN` prints which of the first five features of each search a reader would accept.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from monosem.features import Example, Feature, FeatureStore


def among(words: str) -> Callable[[str], bool]:
    """Whether a word is one of these."""
    known = frozenset(words.split())
    return lambda word: word in known


def matches(pattern: str) -> Callable[[str], bool]:
    """Whether a whole word matches."""
    return lambda word: re.fullmatch(pattern, word) is not None


NUMBER_WORDS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion|trillion"
)
CONCEPTS: dict[str, Callable[[str], bool]] = {
    "negation": among(
        "not no never t 't n't don didn doesn isn wasn weren aren couldn wouldn shouldn won can't cannot hasn "
        "hadn haven "
        "none nothing nobody nor neither nowhere without"
    ),
    "past tense": matches(
        r"[a-z]{2,}ed|was|were|had|did|said|went|came|took|made|found|saw|got|gave|told|thought|left|felt|kept|began|"
        r"became|ran|won|lost|met|sat|stood|heard|held|led|brought|bought|knew|wrote|fell|grew|sent|spoke"
    ),
    "countries": among(
        "france germany england britain spain italy portugal greece turkey russia ukraine poland austria hungary "
        "sweden "
        "norway denmark finland ireland scotland wales switzerland netherlands belgium china japan korea india "
        "pakistan "
        "iran iraq israel egypt syria lebanon jordan indonesia malaysia thailand vietnam philippines australia canada "
        "mexico brazil argentina chile peru cuba america usa nigeria kenya ethiopia afghanistan bangladesh singapore "
        "romania bulgaria serbia croatia taiwan zealand africa uruguay jamaica azerbaijan armenia georgia venezuela"
    ),
    "numbers": matches(rf"[\d,.%]*\d[\d,.%]*|({NUMBER_WORDS})s?"),
    "months": among(
        "january february march april may june july august september october november december jan feb mar apr jun jul "
        "aug sep sept oct nov dec"
    ),
    "family": among(
        "mother father mom dad mum mommy daddy mama papa parent parents son sons daughter daughters brother "
        "brothers sister "
        "sisters uncle aunt cousin cousins wife husband grandmother grandfather grandma grandpa grandson nephew niece "
        "family families child children baby siblings"
    ),
    "war": among(
        "war wars army armies soldier soldiers troops battle battles enemy enemies military attack attacks fight "
        "fighting "
        "fought bomb bombs weapons gun guns navy naval invasion general officer regiment division battalion"
    ),
    "religion": among(
        "god gods lord jesus christ christian christians christianity church churches catholic protestant bible "
        "prayer pray "
        "prayers prayed priest priests pope bishop islam islamic muslim muslims jewish jews hindu buddhist religion "
        "religious religions faith holy heaven saint saints soul temple divine sacred spiritual"
    ),
    "colours": among(
        "red blue green yellow black white brown orange purple pink grey gray golden gold silver violet scarlet colour "
        "colours color colors colored coloured dark crimson"
    ),
    "money": among(
        "money dollar dollars pound pounds euro euros cent cents $ £ € price prices cost costs pay paid pays "
        "paying payment "
        "fund funds tax taxes bank banks cash income salary fee fees debt loan budget wealth rich rupees yen million"
    ),
    "questions": among("what who whom whose which where when why how ? question questions ask asks asked asking"),
    "sports": among(
        "sport sports game games football soccer baseball basketball cricket rugby tennis golf hockey team teams "
        "player "
        "players coach league season seasons match matches cup championship championships won win goal goals club "
        "stadium olympic olympics tournament score scored athlete athletes race races"
    ),
    "music": among(
        "music musical musician song songs album albums band bands singer singers guitar piano violin drums opera "
        "concert "
        "concerts orchestra jazz rock pop recording recorded lyrics vocals sing sang singing single singles track "
        "tracks "
        "tour dance melody"
    ),
    "cities": among(
        "city cities town towns london paris berlin rome madrid vienna moscow tokyo york chicago boston "
        "washington angeles "
        "delhi mumbai beijing shanghai sydney melbourne toronto manchester liverpool birmingham istanbul cairo "
        "jerusalem "
        "athens dublin edinburgh amsterdam francisco philadelphia houston detroit baltimore orleans hong kong"
    ),
    "animals": among(
        "animal animals dog dogs cat cats horse horses cow cows pig pigs bird birds fish rabbit rabbits bunny "
        "bear bears "
        "wolf wolves lion lions tiger elephant monkey mouse mice rat rats sheep goat duck chicken frog frogs snake fox "
        "deer insect insects spider ant ants bee bees butterfly whale shark species puppy kitten"
    ),
    "women": among(
        "woman women girl girls lady ladies mrs ms miss she her hers herself mother mom daughter daughters wife sister "
        "sisters queen princess female aunt grandmother grandma mary lily lucy elizabeth anna sara sarah jane "
        "emma amy rose"
    ),
    "law": among(
        "law laws legal court courts judge judges justice lawyer lawyers attorney trial jury constitution "
        "constitutional "
        "act acts bill rights statute crime criminal guilty supreme rule rules case cases legislation"
    ),
    "parts of the body": among(
        "body bodies head heads face faces eye eyes ear ears nose mouth lip lips tooth teeth hand hands arm arms "
        "leg legs "
        "foot feet finger fingers knee knees shoulder shoulders back chest heart brain skin hair bone bones blood neck "
        "throat stomach toes belly"
    ),
    "units of time": among(
        "second seconds minute minutes hour hours day days week weeks month months year years decade decades century "
        "centuries moment night nights morning time times"
    ),
    "food": among(
        "food foods eat eats ate eaten eating bread meat fish rice cheese butter milk egg eggs fruit fruits apple "
        "apples "
        "cake cakes sugar salt soup tea coffee wine beer breakfast lunch dinner meal meals cook cooking cooked "
        "restaurant "
        "vegetables potato potatoes chocolate cookie cookies ice candy sandwich pizza water drink"
    ),
}


def peak_word(example: Example) -> str:
    """The word at the peak of a passage, in small letters."""
    texts, peak = [*example.before, *example.texts, *example.after], len(example.before) + example.peak
    first = last = peak
    while first > 0 and texts[first - 1][-1:].isalnum() and texts[first][:1].isalnum():
        first -= 1
    while last + 1 < len(texts) and texts[last][-1:].isalnum() and texts[last + 1][:1].isalnum():
        last += 1
    return "".join(texts[first : last + 1]).strip(" \n\"',.;:()[]").lower() or texts[peak].strip()


def accepted(feature: Feature, concept: str) -> bool:
    """Whether half of a feature's strongest passages peak at a word of the concept."""
    held = [CONCEPTS[concept](peak_word(example)) for example in feature.top]
    return bool(held) and 2 * sum(held) >= len(held)


def first_five(store: FeatureStore, concept: str) -> list[bool]:
    """Which of the first five that a search by meaning finds a reader would accept."""
    found = store.search(meaning=concept, limit=5).column("latent").to_pylist()
    return [accepted(feature, concept) for feature in store.features(found)]


if __name__ == "__main__":
    opened = FeatureStore(sys.argv[1])
    verdicts = {concept: first_five(opened, concept) for concept in CONCEPTS}
    for name, verdict in verdicts.items():
        print(f"{name:20} {''.join('+' if one else '-' for one in verdict)}")
    for least in (1, 3, 5):
        met = sum(sum(verdict) >= least for verdict in verdicts.values())
        print(f"at least {least} of five: {met} of {len(verdicts)}")
