"""Values in, a page out: one file without scripts."""

from matplotlib.figure import Figure

from multiref import report

# %% Table, print_table, Section, Answer
table = report.Table(["method", "reward"], [["ours", "0.62"], ["theirs", "0.58"]])
report.print_table(table)
answer = report.Answer("Ours has 0.04 more reward than theirs, 95 % interval 0.01 to 0.07.", [table])

# %% Picture
figure = Figure(figsize=(4, 2))
figure.subplots().plot([0.1, 0.2, 0.4], [0.5, 0.6, 0.62], label="ours")
picture = report.Picture(figure, alt="Reward rises with divergence.", caption="Reward against divergence.")

# %% page, write_page, Prose, Note, Formula, Settings, Block
more = report.Section(
    "How it was measured",
    [report.Prose("Four prompts."), report.Note("Few."), report.Formula("E_π[r]"), report.Settings({"beta": 0.1})],
)
html = report.page("Two methods", answer, picture, more)
report.write_page("page.html", "Two methods", answer, picture, more)

# %% Measure, Estimate, paired, Difference
report.Measure.of([0.5, 0.7, 0.6]).text()  # = '0.600 ± 0.058'
report.Estimate(0.2, 0.1, 0.3)  # = Estimate(value=0.2, low=0.1, high=0.3)
report.paired([0.5, 0.7, 0.6], [0.4, 0.5, 0.7]).text()  # = '+0.067 ± 0.088 (within noise)'

# %% ModelCard
card = report.ModelCard(
    "tuned", "models/a", "preference", "E_π[r] − β Σ_k w_k KL(π‖π_k)", {"base": ("models/a", "1")}, 0.1, "pairs.jsonl"
)
card.markdown().startswith("---")  # = True

# %% visible, public
report.visible("a\tb\n")  # = 'a\tb\n'
report.public("https://name:token@host/x")  # = 'https://name:token@host/x'

# %% versions
{"multiref", "python", "torch"} <= report.versions().keys()  # = True

# %% seal, is_sealed
record = report.seal({"kl": 0.5})
report.is_sealed(record), report.is_sealed(record | {"kl": 0.6})  # = (True, False)

# %% write_whole, write_alone
report.write_whole("figures.json", "{}\n")  # the old file, or all of the new one
with report.write_alone(report.write_whole("run/a.txt", "a").parent):  # one writer at a time
    report.write_whole("run/a.txt", "b")
