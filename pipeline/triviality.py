"""Questions not worth asking: trivial ones, ones about the notebook and not its data, ones about models' scores."""

from __future__ import annotations

import ast
import re

from jupyter_env.task import Level

_PARTS = (
    r"(?:rows|records|entries|observations|samples|data ?points|columns|features|variables"
    r"|(?:unique|missing|null) values)"
)
_NARROWER = r"(?! (?:where|that|which|whose|with|who|ha[sd]|have|from|in which|for|after|of))"
_WHOLE_TABLE = re.compile(
    rf"\bhow many (?:\w+ ){{0,2}}{_PARTS}\b{_NARROWER}"
    rf"|\b(?:total )?(?:number|count) of {_PARTS}\b{_NARROWER}"
    r"|\b(?:shape|size|dimensions?) of the (?:data ?set|data ?frame|table|data)\b"
    r"|\bname of the \w+ column\b|\bdata ?types? of\b",
    re.IGNORECASE,
)
_NOTEBOOK = re.compile(
    r"\b(?:the|this|that|in) (?:notebook|cell|output|data ?frame|code cell|plot|chart|figure|author)\b"
    r"|\b(?:this|that|above|following|given) code\b|\bcell \d+\b|\b(?:df|data_?frame)\b|\bdf_\w+"
    r"|\bthe (?:above|previous|following) (?:output|table|result)",
    re.IGNORECASE,
)
_SCORES = (
    r"(?:accuracy|f1|auc|roc|rmse|mae|mse|r2|r-squared|log ?loss|precision|recall|cross[- ]validation"
    r"|hyper-?parameters?|epochs?|learning rate|(?:validation|test|training) (?:loss|score)|confusion matrix)"
)
_MODELS_WORDS = (
    r"(?:model|classifier|regressor|regression|network|forest|boosting|xgboost|lightgbm|svm|estimator|train(?:ing|ed)?)"
)
_MODELS = re.compile(
    rf"\b{_SCORES}\b.{{0,80}}\b{_MODELS_WORDS}\b|\b{_MODELS_WORDS}\b.{{0,80}}\b{_SCORES}\b", re.IGNORECASE | re.DOTALL
)

_TRANSFORMS = frozenset(
    """groupby merge join concat pivot pivot_table melt stack unstack crosstab resample rolling expanding shift
    diff pct_change cumsum cumprod cummax cummin sort_values sort_index nlargest nsmallest rank quantile
    corr corrwith cov map apply applymap agg aggregate transform query isin between where mask cut qcut
    fillna dropna drop_duplicates duplicated to_datetime to_numeric astype explode get_dummies value_counts
    idxmax idxmin argmax argmin mode interpolate replace filter assign eval clip polyfit linregress
    ttest_ind pearsonr spearmanr chi2_contingency fit asfreq tz_convert normalize split extract contains
    startswith match nunique skew kurt std var median sem""".split()  # noqa: SIM905
)
_REDUCTIONS = frozenset(("mean", "sum", "count", "size", "min", "max", "prod", "len", "any", "all", "unique"))


def why_unwanted(question: str) -> tuple[str, str] | None:
    """(reason, detail) where the words alone speak against a question."""
    if match := _WHOLE_TABLE.search(question):
        return "trivial", match[0]
    if match := _NOTEBOOK.search(question):
        return "about_the_notebook", match[0]
    if match := _MODELS.search(question):
        return "about_model_scores", match[0][:120]
    return None


def steps(code: str) -> int:
    """About how many operations on the data the code makes: transformations, filters, derivations, reductions.

    Reductions of whole columns alone, however many, are one.

    Raises:
        SyntaxError: the code is no Python.
    """
    tree = ast.parse(code)
    count = reductions = 0
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
                count += name in _TRANSFORMS
                reductions += name in _REDUCTIONS
            case ast.Attribute(attr="str" | "dt"):
                count += 1
            case ast.Compare():  # a filter, in pandas or in a loop
                count += 1
            case ast.BinOp(left=ast.Constant(value=str())) | ast.BinOp(right=ast.Constant(value=str())):
                pass  # putting the answer's text together
            case ast.BinOp():
                count += 1
            case ast.For() | ast.comprehension():
                count += 1
    return count + reductions if count else min(reductions, 1)


def level_of(count: int) -> Level:
    """The level of a question that takes so many steps."""
    return "easy" if count <= 3 else "medium" if count <= 6 else "hard" if count <= 10 else "expert"
