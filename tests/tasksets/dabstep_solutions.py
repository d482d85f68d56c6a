"""Hand-written solutions of the four dev tasks of DABstep that need no payments: cells, the last of which prints the
answer, a list in several lines."""

_FEES = """
import json
import pandas as pd
fees = pd.DataFrame(json.load(open('data/fees.json')))
"""

SOLUTIONS = {
    "70": [
        # The manual has no fine for a high fraud rate: the question has no answer.
        "import re\nmanual = open('data/manual.md').read()\n"
        "print([line for line in manual.splitlines() if 'fraud' in line])",
        "print('yes' if re.search(r'\\bfines?\\b', manual) else 'Not Applicable')",
    ],
    "1273": [
        _FEES,
        "known = fees[(fees.card_scheme == 'GlobalCard') & (fees.is_credit != False)]\n"
        "print(round((known.fixed_amount + known.rate * 10 / 10000).mean(), 6))",
    ],
    "1305": [
        _FEES,
        "codes = pd.read_csv('data/merchant_category_codes.csv')\n"
        "code = codes.mcc[codes.description == 'Eating Places and Restaurants'].item()\n"
        "fits = fees.account_type.map(lambda given: not given or 'H' in given)\n"
        "fits &= fees.merchant_category_code.map(lambda given: not given or code in given)\n"
        "fits &= fees.card_scheme == 'GlobalCard'\n"
        "print(round((fees.fixed_amount + fees.rate * 10 / 10000)[fits].mean(), 6))",
    ],
    "1464": [
        _FEES,
        "fits = fees.account_type.map(lambda given: not given or 'R' in given)\n"
        "fits &= fees.aci.map(lambda given: not given or 'B' in given)\n"
        "ids = [str(number) for number in fees.ID[fits]]\n"
        "for start in range(0, len(ids), 60):  # one long line would be shown shortened\n"
        "    print(', '.join(ids[start : start + 60]))",
    ],
}
