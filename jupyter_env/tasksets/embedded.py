"""What is known about the embedded tables: licence, the noun for a row, columns in words.

Licences are those the shipping package states for the data: a `COPYRIGHT` note in statsmodels, the
description in vega_datasets, the README of palmerpenguins; and those of the UCI repository for what
scikit-learn copies from there.
"""

from __future__ import annotations

from typing import Any

from jupyter_env.tasksets.tables import Table

_PUBLIC = "public domain"
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def _vega(name: str, licence: str, **facts: Any) -> Table:
    facts.setdefault("dataset", f"vega-{name.replace('_', '-')}")
    return Table(path=f"vega_datasets/{name}.csv", licence=licence, source=f"vega_datasets 0.9.0, {name}", **facts)


def _statsmodels(name: str, **facts: Any) -> Table:
    facts.setdefault("dataset", f"statsmodels-{name}")
    source = f"statsmodels.datasets.{name}"
    return Table(path=f"statsmodels/{name}.csv", licence=_PUBLIC, source=source, **facts)


def _sklearn(name: str, **facts: Any) -> Table:
    source = f"UCI Machine Learning Repository, as copied by scikit-learn's load_{name}"
    return Table(path=f"sklearn/{name}.csv", dataset=f"uci-{name}", licence="CC-BY-4.0", source=source, **facts)


EMBEDDED: tuple[Table, ...] = (
    Table(
        path="palmerpenguins/penguins.csv",
        dataset="palmerpenguins",
        licence="CC0-1.0",
        source="palmerpenguins 0.1.6 (Gorman, Williams and Fraser 2014)",
        noun="penguin",
        nouns="penguins",
        labels={
            "bill_length_mm": "bill length in mm",
            "bill_depth_mm": "bill depth in mm",
            "flipper_length_mm": "flipper length in mm",
            "body_mass_g": "body mass in g",
        },
        totals=("body_mass_g",),
    ),
    Table(
        path="gapminder/gapminder.csv",
        dataset="gapminder",
        licence="BSD-3-Clause",
        source="gapminder 0.1 (excerpt of the Gapminder data)",
        noun="country and year",
        nouns="rows",
        labels={"lifeExp": "life expectancy in years", "pop": "population", "gdpPercap": "GDP per head"},
        totals=("pop",),
    ),
    _vega(
        "airports",
        _PUBLIC,
        noun="airport",
        nouns="airports",
        labels={"iata": "IATA code"},
        totals=(),
        ignored=("name",),
    ),
    _vega(
        "seattle_weather",
        f"{_PUBLIC} (NOAA)",
        noun="day",
        nouns="days",
        labels={
            "precipitation": "precipitation in mm",
            "temp_max": "highest temperature of the day",
            "temp_min": "lowest temperature of the day",
            "wind": "wind speed",
        },
        totals=("precipitation",),
    ),
    _vega("seattle_temps", f"{_PUBLIC} (NOAA)", dataset="city-temps", noun="hour", nouns="hours", totals=()),
    _vega("sf_temps", f"{_PUBLIC} (NOAA)", dataset="city-temps", noun="hour", nouns="hours", totals=()),
    _vega(
        "iowa_electricity",
        f"{_PUBLIC} (US EIA)",
        noun="source and year",
        nouns="rows",
        labels={"net_generation": "net generation in thousand MWh"},
        totals=("net_generation",),
    ),
    _vega(
        "us_employment",
        f"{_PUBLIC} (US BLS)",
        noun="month",
        nouns="months",
        totals=(),
        wide=(
            "construction",
            "manufacturing",
            "wholesale_trade",
            "retail_trade",
            "financial_activities",
            "government",
        ),
    ),
    _vega(
        "cars",
        "MIT (as packaged; published by StatLib)",
        noun="car",
        nouns="cars",
        labels={
            "Miles_per_Gallon": "fuel economy in miles per gallon",
            "Displacement": "engine displacement",
            "Weight_in_lbs": "weight in lbs",
        },
        categories=("Cylinders",),
        totals=("Weight_in_lbs", "Horsepower"),
    ),
    _vega(
        "barley",
        "MIT (as packaged; Immer et al. 1934)",
        noun="trial plot",
        nouns="trial plots",
        labels={"yield": "yield in bushels per acre"},
        totals=("yield",),
    ),
    _vega(
        "crimea",
        "MIT (as packaged; Nightingale 1858)",
        noun="month",
        nouns="months",
        labels={
            "disease": "deaths by disease",
            "wounds": "deaths by wounds",
            "other": "deaths by other causes",
        },
        totals=("wounds", "other", "disease"),
        wide=("wounds", "other", "disease"),
    ),
    _vega("wheat", "MIT (as packaged; Playfair 1822)", noun="five-year step", nouns="rows", totals=()),
    _statsmodels(
        "anes96",
        noun="respondent",
        nouns="respondents",
        labels={"popul": "population of the place in thousands", "age": "age in years"},
        categories=("PID", "educ", "vote", "selfLR", "TVnews"),
        totals=(),
        wide=("selfLR", "ClinLR", "DoleLR"),
        ignored=("logpopul",),
    ),
    _statsmodels("co2", noun="week", nouns="weeks", labels={"co2": "CO2 in parts per million"}, totals=()),
    _statsmodels("elnino", dataset="yearly-nature", noun="year", nouns="years", totals=(), wide=_MONTHS),
    _statsmodels(
        "grunfeld",
        dataset="us-economy",
        noun="firm and year",
        nouns="rows",
        labels={"invest": "gross investment", "value": "market value", "capital": "capital stock"},
        totals=("invest", "value", "capital"),
    ),
    _statsmodels("longley", dataset="us-economy", noun="year", nouns="years", totals=()),
    _statsmodels(
        "macrodata",
        dataset="us-economy",
        noun="quarter",
        nouns="quarters",
        labels={"realgdp": "real GDP", "unemp": "unemployment rate", "infl": "inflation rate"},
        categories=("quarter",),
        totals=("realgdp", "realcons", "realinv", "realgovt"),
        wide=("realcons", "realinv", "realgovt"),
    ),
    _statsmodels(
        "modechoice",
        noun="traveller and mode",
        nouns="rows",
        labels={"ttme": "terminal waiting time", "invt": "time in the vehicle", "hinc": "household income"},
        categories=("mode", "choice", "psize"),
        totals=("invt", "ttme"),
        ignored=("individual",),
    ),
    _statsmodels("nile", dataset="yearly-nature", noun="year", nouns="years", totals=("volume",)),
    _statsmodels(
        "randhie",
        noun="person and year",
        nouns="rows",
        labels={"mdvis": "visits to a doctor", "disea": "number of chronic diseases"},
        categories=("idp", "physlm", "hlthg", "hlthf", "hlthp"),
        totals=("mdvis",),
        ignored=("physlm",),
    ),
    _statsmodels(
        "statecrime",
        noun="state",
        nouns="states",
        labels={
            "hs_grad": "share with a high school degree",
            "murder": "murder rate",
            "violent": "violent crime rate",
        },
        totals=(),
    ),
    _statsmodels("strikes", noun="strike", nouns="strikes", labels={"duration": "duration in days"}),
    _statsmodels("sunspots", dataset="yearly-nature", noun="year", nouns="years", totals=("SUNACTIVITY",)),
    _sklearn(
        "iris",
        noun="flower",
        nouns="flowers",
        totals=(),
        wide=("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"),
    ),
    _sklearn("wine", noun="wine", nouns="wines", totals=()),
    _sklearn("breast_cancer", noun="tumour", nouns="tumours", totals=()),
)
"""In the order in which they are written and offered."""
