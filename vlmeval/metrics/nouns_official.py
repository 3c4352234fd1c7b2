"""The official AMBER noun engine: nltk's tokenizer, tagger and WordNet lemmatizer, case kept.

Source: https://github.com/junyangwang0410/AMBER at 534babf, ``extract_nouns`` of ``inference.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from vlmdata.errors import ConfigError, DependencyError

__all__ = ["load"]


def load() -> Callable[[str], list[str]]:
    """A function from text to its lemmatized nouns in order.

    Raises:
        DependencyError: nltk is not installed.
        ConfigError: nltk is, its data is not.
    """
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
    except ImportError:
        raise DependencyError("nltk", "amber", "--nouns official") from None
    lemmatizer = WordNetLemmatizer()

    def nouns(text: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]

    try:
        nouns("A dog sits near two trees.")
    except LookupError:
        raise ConfigError(
            "--nouns official needs nltk's data, which is not installed: python -m nltk.downloader punkt_tab "
            "averaged_perceptron_tagger_eng wordnet; or use --nouns embedded"
        ) from None
    return nouns
