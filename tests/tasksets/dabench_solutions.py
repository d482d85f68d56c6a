"""Hand-written solutions of 54 questions of DABench: the code of an agent that knows its trade.

Each runs in a kernel where numpy, pandas and scipy.stats are imported as np, pd and stats and the question's table is
`t`, and leaves the values to answer in `a`, by name.
"""

SOLUTIONS: dict[int, str] = {
    0: "a = {'mean_fare': f'{t.Fare.mean():.2f}'}",
    5: "a = {'correlation_coefficient': f'{(t.SibSp + t.Parch).corr(t.Fare):.2f}'}",
    10: "a = {'is_normal': 'yes' if stats.shapiro(t['Total Traded Quantity']).pvalue > 0.05 else 'no'}",
    25: "a = {'bmi_distribution': 'normal' if abs(t.bmi.skew()) < 0.5 else 'not_normal'}",
    30: """
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
t = t.dropna(subset=['age', 'bmi', 'charges'])
x, x2, y, y2 = train_test_split(t[['age', 'bmi']], t.charges, test_size=0.2, random_state=42)
error = LinearRegression().fit(x, y).predict(x2) - y2
a = {'model_rmse': f'{np.sqrt((error**2).mean()):.2f}'}""",
    35: "a = {'removed_outliers_count': int((np.abs(stats.zscore(t['row retention time'])) > 3).sum())}",
    55: """
cases = pd.to_numeric(t['No. of cases'].str.partition('[')[0], errors='coerce').dropna()
a = {'mean_cases': round(cases.mean())}""",
    70: """
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
names = 'exper looks union goodhlth black female married south bigcity smllcity service educ'.split()
x, x2, y, y2 = train_test_split(t[names], t.wage, test_size=0.3, random_state=42)
error = LinearRegression().fit(x, y).predict(x2) - y2
a = {'RMSE': f'{np.sqrt((error**2).mean()):.2f}'}""",
    75: """
change = t.Close.pct_change() * 100
a = {'daily_return_mean': f'{change.mean():.2f}', 'daily_return_std': f'{change.std():.2f}'}""",
    105: "a = {'correlation_coefficient': f'{t.ApplicantIncome.corr(t.LoanAmount):.2f}'}",
    125: """
import statsmodels.api as sm
names = ['total_vaccinations', 'people_vaccinated_per_hundred']
t = t.dropna(subset=[*names, 'people_fully_vaccinated_per_hundred'])
fit = sm.OLS(t.people_fully_vaccinated_per_hundred, sm.add_constant(t[names])).fit()
a = {'significant_predictor': ','.join('yes' if fit.pvalues[name] < 0.05 else 'no' for name in names),
     'r_squared': f'{fit.rsquared:.4f}'}""",
    130: """
p = stats.shapiro(t.Age.dropna()).pvalue
a = {'norm_test_pvalue': f'{p:.4f}', 'is_normal': p > 0.05}""",
    140: """
r, p = stats.pearsonr(t.votes_dem, t.votes_gop)
a = {'correlation_coefficient': f'{r:.3f}', 'p_value': f'{p:.4f}',
     'relationship_type': 'none' if p >= 0.05 else 'linear' if abs(r) >= 0.5 else 'nonlinear'}""",
    175: "a = {'outliers_count': int((np.abs(stats.zscore(t.Age.dropna())) > 3).sum())}",
    180: """
a = {f'class{c}_outliers': int((np.abs(stats.zscore(t.Fare[t.Pclass == c])) > 3).sum()) for c in (1, 2, 3)}""",
    210: """
kept = t.neg[np.abs((t.neg - t.neg.mean()) / t.neg.std()) <= 3]
a = {'mean_neg': f'{kept.mean():.2f}', 'std_dev_neg': f'{kept.std():.2f}'}""",
    220: """
t = t.drop_duplicates()
t['diff_range'] = t.max_diffsel - t.min_diffsel
missing = t.isna().any().any()
a = {'missing_values_handling': 'Filled with means.' if missing else 'No missing values were found.'}""",
    250: """
difference = (t.batting_average - t.on_base_percentage).dropna()
a = {'mean': f'{difference.mean():.2f}', 'std_dev': f'{difference.std():.2f}'}""",
    255: """
gdp = t.gdpPercap_2007
a = {'mean_gdp2007': f'{gdp.mean():.2f}', 'standard_deviation_gdp2007': f'{gdp.std():.2f}'}""",
    275: """
from sklearn.ensemble import RandomForestRegressor
doubled = int(t.duplicated().sum())
t = t.drop_duplicates()
flux = t.USFLUX.mean()
x, y = t[['MEANJZH', 'TOTUSJZ', 'MEANGBT']], t.TOTUSJH
score = RandomForestRegressor(100, random_state=0).fit(x, y).score(x, y)
a = {'duplicate_count': doubled, 'usflux_mean': f'{flux:.2f}',
     'new_feature_mean': f'{(t.MEANGAM - t.MEANGBZ).mean():.2f}', 'model_accuracy': f'{100 * score:.3f}'}""",
    300: """
# The windows overlap, so a missing one lies between its neighbours. Without them it is 0.53, not the label's 0.54.
filled = t[['nsnps', 'nsamplecov']].interpolate()
r, p = stats.pearsonr(filled.nsnps, filled.nsamplecov)
a = {'correlation_coefficient': f'{r:.2f}', 'p_value': f'{p:.4f}',
     'correlation': 'correlated' if p < 0.05 else 'not correlated'}""",
    310: """
names = ['Age', 'Fare', 'SibSp', 'Parch']
pairs = t[names].corr().where(np.triu(np.ones((4, 4), bool), 1)).stack()
a = {'strongest_correlation_pair': ', '.join(pairs.idxmax()),
     'strongest_correlation_coefficient': f'{pairs.max():.2f}'}""",
    320: "a = {'mean_eventmsgtype': f'{t.EVENTMSGTYPE.mean():.2f}'}",
    350: "a = {'is_normal': stats.shapiro(t.Fare).pvalue > 0.05}",
    355: """
import statsmodels.api as sm
fit = sm.OLS(t.Fare, sm.add_constant(t[['Age', 'Pclass']])).fit()
a = {f'coef_{name.lower()}': f'{fit.params[name]:.2f}' for name in ('Age', 'Pclass')}
a |= {f'relationship_{name.lower()}': 'significant' if fit.pvalues[name] < 0.05 else 'not significant'
      for name in ('Age', 'Pclass')}""",
    360: """
t = t.dropna(subset=['temperature', 'humidity'])
r = t.temperature.corr(t.humidity)
a = {'correlation_coefficient': f'{r:.2f}',
     'correlation_strength': 'strong' if abs(r) >= 0.7 else 'moderate' if abs(r) >= 0.3 else 'weak'}""",
    375: """
trips = t['Trips over the past 24-hours (midnight to 11:59pm)']
w, p = stats.shapiro(trips)
a = {'shapiro_w': f'{w:.4f}', 'p_value': f'{p:.4f}', 'skewness': f'{stats.skew(trips):.4f}',
     'kurtosis': f'{stats.kurtosis(trips):.4f}'}""",
    410: """
died = t[(t.Survived == 0)].dropna(subset=['Age'])
p = stats.ks_2samp(died.Age[died.Sex == 'male'], died.Age[died.Sex == 'female']).pvalue
a = {'is_significantly_different': p < 0.05}""",
    415: """
lived, died = (t.Fare[(t.Sex == 'male') & (t.Survived == s)] for s in (1, 0))
p = stats.ttest_ind(lived, died).pvalue
a = {'survived_fare_mean': f'{lived.mean():.2f}', 'survived_fare_std': f'{lived.std():.2f}',
     'not_survived_fare_mean': f'{died.mean():.2f}', 'not_survived_fare_std': f'{died.std():.2f}',
     'fare_difference_significance': 'significant' if p < 0.05 else 'not significant'}""",
    425: "a = {'missing_values_count': int(t.max_sust_wind.isna().sum())}",
    450: """
t.columns = t.columns.str.strip()
wind = pd.to_numeric(t.WINDSPEED, errors='coerce').groupby(pd.to_datetime(t['DATE TIME']).dt.month).mean()
a = {'monthly_avg_windspeed': {f'month_{month}': float(round(mean, 2)) for month, mean in wind.items()}}""",
    465: """
skew = stats.skew(t.Age.dropna())
a = {'distribution_skew': 'skewed_right' if skew > 0.5 else 'skewed_left' if skew < -0.5 else 'symmetric'}""",
    480: "a = {'standard_deviation': f'{(t.Value - t.Value.mean()).std():.2f}'}",
    490: "a = {'mean_value': f'{t.Engineering.mean():.2f}'}",
    495: """
far = np.abs(stats.zscore(t.Architecture)) > 3
kept = t.Architecture[~far]
a = {'outlier_years': ', '.join(map(str, sorted(t.Year[far]))), 'mean_without_outliers': f'{kept.mean():.2f}',
     'std_without_outliers': f'{kept.std():.2f}'}""",
    510: """
t = t[t.review_count >= 100].dropna(subset=['brand_name', 'star_rating'])
brands = t.groupby('brand_name').star_rating.agg(['mean', 'size'])
brands = brands[brands['size'] >= 10].sort_values(['mean', 'size'], ascending=False)
a = {'brand_with_highest_average_star_rating': brands.index[0]}""",
    520: "a = {'correlation_coefficient': f'{(t.SibSp + t.Parch).corr(t.Survived):.2f}'}",
    530: """
a = {}
for sex in ('male', 'female'):
    known = t[t.Sex == sex].dropna(subset=['Age', 'Fare'])
    r, p = stats.pearsonr(known.Age, known.Fare)
    a[f'correlation_coefficient_{sex}'], a[f'p_value_{sex}'] = f'{r:.2f}', f'{p:.4f}'
    a[f'relationship_type_{sex}'] = 'none' if p >= 0.05 else 'linear' if abs(r) >= 0.5 else 'nonlinear'""",
    550: """
from sklearn.preprocessing import MinMaxScaler
names = [name for name in t.columns if name not in ('Sex', 'Rings')]
scaled = pd.DataFrame(MinMaxScaler().fit_transform(t[names].fillna(t[names].median())), columns=names)
normal = (scaled.skew().abs() <= 0.5) & (scaled.kurtosis().abs() <= 2)
a = {'missing_values_handled': '"Yes"', 'min_max_scaler_scale': '"0-1"',
     'distribution_type': '"Normal"' if normal.all() else '"Non-Normal"'}""",
    555: "a = {'unique_species_count': int((t.SPP_SYMBOL.value_counts() >= 5).sum())}",
    575: """
t['mean'] = t[['AAPL.O', 'MSFT.O', 'AMZN.O']].mean(axis=1)
known = t.dropna(subset=['mean', '.SPX'])
r, p = stats.pearsonr(known['mean'], known['.SPX'])
a = {'correlation_coefficient_corr': f'{r:.2f}', 'p_value_pval': f'{p:.4f}',
     'relationship_type_relation': 'none' if p >= 0.05 else 'linear' if abs(r) >= 0.5 else 'nonlinear'}""",
    590: """
from sklearn.linear_model import LinearRegression
t.columns = t.columns.str.strip()
t['s'] = pd.to_datetime(t.timestamp, format='%b %d  %Y %I:%M:%S %p').astype('int64') // 10**9
names = ['s', 'num. busy overflows', 'num. calls answered', 'num. calls abandoned', 'num. calls transferred']
fit = LinearRegression().fit(t[names], t['avg. num. agents staffed'])
asked = t[names].mean().to_frame().T
asked['s'] = pd.Timestamp('2017-04-13 12:00:00').timestamp()
a = {'predicted_agents': max(0, round(float(fit.predict(asked)[0])))}""",
    650: """
t.columns = t.columns.str.strip()
a = {'correlation_coefficient': f'{t.X.corr(t.Y):.3f}'}""",
    655: """
t.columns = t.columns.str.strip()
a = {'correlation_XY': f'{t.X.corr(t.Y):.2f}', 'correlation_XZ': f'{t.X.corr(t.Z):.2f}'}""",
    665: """
close = t.Close.fillna(t.Close.mean())
low, high = close.quantile([0.25, 0.75])
counts = {'high': (close >= high).sum(), 'low': (close <= low).sum()}
counts['medium'] = len(close) - counts['high'] - counts['low']
a = {f'{name}_count': int(count) for name, count in counts.items()}
a |= {f'{name}_proportion': f'{count / len(close):.2f}' for name, count in counts.items()}""",
    685: """
r, p = stats.pearsonr(t.pressure, t.wind_speed)
a = {'correlation_coefficient': f'{r:.2f}', 'p_value': f'{p:.4f}',
     'relationship_significance': 'significant' if p < 0.05 else 'not significant'}""",
    690: """
far = np.abs(stats.zscore(t.wind_speed)) > 3
kept = t.wind_speed[~far]
a = {'number_of_outliers': int(far.sum()), 'mean_wind_speed': f'{kept.mean():.2f}',
     'std_deviation_wind_speed': f'{kept.std():.2f}'}""",
    710: """
wins = pd.to_numeric(t.iloc[:, 0], errors='coerce')
a = {'mean_wins': f'{wins.mean():.1f}'}""",
    715: """
a = {'missing_percentage': f"{100 * t['Unnamed: 8'].isna().mean():.2f}"}""",
    725: """
a = {}
for place, value in enumerate(t.displacement.value_counts().index[:3], start=1):
    mpg = t.mpg[t.displacement == value]
    a[f'mean{place}'], a[f'median{place}'] = f'{mpg.mean():.2f}', f'{mpg.median():.2f}'""",
    730: """
r, p = stats.pearsonr(t['pop'], t.gdppercap)
a = {'correlation_coefficient': f'{r:.2f}', 'p_value': f'{p:.4f}'}""",
    740: "a = {'outliers': int((np.abs((t.Balance - t.Balance.mean()) / t.Balance.std(ddof=0)) > 3).sum())}",
    755: "a = {'mean_TMAX_F': f'{t.TMAX_F.mean():.2f}'}",
    760: """
missing = t.obs_value.isna().groupby(t.station).sum()
a = {'most_missing_station_name': f'"{missing.idxmax()}"', 'most_missing_station_count': int(missing.max())}""",
}
