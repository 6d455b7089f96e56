"Melodies, prediction by partial matching, and the expectation model: figures of other programs, a naive model, bad input."
import copy, itertools, json, math, pickle, struct, subprocess, sys, time, unicodedata, warnings, zipfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
import numpy as np, pytest
from latentalign.perception.combining import COMBINATIONS, combine
from latentalign.perception.expectation import ExpectationModel, MODES
from latentalign.perception.selection import select_viewpoints
from latentalign.perception.expect import write_expectation
from latentalign.perception.agreement import Agreement, agreement, correlation, encoder_delay, frames_to_notes
from latentalign.perception.agreement import interval, notes_to_frames, onset_frames, onset_loudness, ranks
from latentalign.perception.agreement import read_ic_table
from latentalign.perception.melodies import Melody, estimate_key, estimate_tonic, to_ticks, with_key
from latentalign.perception.midi import read_midi
from latentalign.perception.score_files import read_score
from latentalign.perception.corpora import READERS, corpus_melodies, find_melodies, read_idyom, read_melodies
from latentalign.perception.corpora import read_melody
from latentalign.perception.viewpoints import view_melody, viewpoint
from latentalign.perception.ppm import ContextTree, END, ESCAPES, LONG_TERM, PPM, SHORT_TERM, SMOOTHINGS
from latentalign.perception.ppm import normalise, predict, sequence_probabilities, states


def tune(pitches, durations=None, **kw):
    durations = [1.]*len(pitches) if durations is None else durations
    return Melody(np.concatenate([[0], np.cumsum(durations)[:-1]]), durations, pitches, **kw)

def numbers(line): return np.array(line.split(), float)


# what IDyOM 1.7.1 says to a word: escape C, interpolation, exclusion, no update exclusion, no bound unless said

ABRACADABRA = {
    PPM(): (".20000 .10000 .11111 .25000 .06667 .26667 .08333 .25000 .21705 .40426 .43478", 2.44770),
    PPM(smoothing="back-off"): (".20000 .11111 .14286 .20000 .09091 .28571 .14286 .42857 .22222 .61905 .64706", 2.12795),
    PPM(update_exclusion=True): (".20000 .10000 .11111 .25000 .06667 .26667 .08333 .25000 .21705 .40000 .42857", 2.45097),
    PPM("AX", update_exclusion=True): (".20000 .13333 .13043 .24138 .08333 .26667 .09375 .25000 .20988 .30769 .36000", 2.41379),
    PPM("A"): (".20000 .10000 .07692 .28571 .03448 .33333 .02703 .33333 .25806 .47826 .54545", 2.57107),
    PPM("D"): (".20000 .10000 .11111 .25000 .05882 .31250 .07143 .29412 .21088 .41818 .47170", 2.43087),
    PPM(order_bound=0): (".20000 .10000 .11111 .25000 .11111 .26667 .12500 .25000 .18182 .17647 .25714", 2.52835)}

@pytest.mark.parametrize("ppm", ABRACADABRA, ids=str)
def test_idyom_on_abracadabra(ppm):
    line, mean = ABRACADABRA[ppm]
    p = sequence_probabilities(ppm, "abracadabra")
    assert np.abs(p - numbers(line)).max() < 1e-5 and abs(-np.log2(p).mean() - mean) < 1e-5


# IDyOM's figures that stand among the tests of the R package ppm (github.com/pmcharrison/ppm, MIT licence)

def heard(ppm, words, alphabet=None):
    tree, alphabet = ContextTree(), sorted(set("".join(words))) if alphabet is None else alphabet
    return [sequence_probabilities(ppm, word, alphabet, tree) for word in words]

@pytest.mark.parametrize("words, means", [
    ("abracadabra abracadabra abracadabra", (2.4509745, 1.1457417, .8534344)), ("abracadabra bracadabra", (2.4509745, 1.1973304)),
    ("abracadabra abrabrac", (2.4509745, 1.4018788)), ("abracadabra abratbrac", (2.591134, 1.8791169)), ("abracadabra abrabtrac", (2.591134, 2.0285676)),
    ("abracadabra abrabrtac", (2.591134, 1.8929263)), ("abracadabra abrabratc", (2.591134, 1.7575804)), ("abracadabra abrabract", (2.591134, 1.5876032))])
def test_idyom_with_update_exclusion_over_several_words(words, means):
    found = [-np.log2(p).mean() for p in heard(PPM(update_exclusion=True), words.split())]
    assert np.abs(np.array(found) - means).max() < 1e-6

COUPERIN = """45 52 57 60 64 69 45 52 57 60 64 69 45 45 44 52 60 60 59 64 64 71 45 57 76 74 72 71 72 72 72 72 72 72 72 72 52 64 69 69 71 71 71 71 71 71 50 52 54 55 52
    53 52 50 48 48 47 69 71 72 55 74 62 67 48 67 69 71 57 72 72 57 64 65 72 72 72 60 62 66 71 71 62 68 66 68 64 64 64 64 59 59 60 64 68 68 69 69 50 49 49 50
    59 64 64 65 69 47 48 50 52 53 50 50 52 60 64 69 52 60 60 59 69 69 68 68 68 45 52 57 61 64 69 45 52 57 62 61 64 69"""
HINDEMITH = """84 83 85 86 81 82 81 80 80 80 79 77 79 76 83 73 72 71 72 77 76 75 77 79 80 82 84 85 87 88 88 87 82 77 78 83 81 79 77 76 75 77 78 73 74 72 71 71 70 69 68 67
    68 70 62 73 74 63 78 79 92 90 89 88 88 91 87 86 85 84 83 85 86 81 82 81 80 80 80 79 77 79 76 83 73 71 73 74 74 74 73 71 73 70 77 67 68 69 70 70 68 69 70 70
    68 69 70 63 63 68 66 63 62 70 63 68 66 63 62 70 63 68 66 63 62"""

@pytest.mark.parametrize("piece, mean", [(COUPERIN, 4.195832), (HINDEMITH, 4.210231)])
def test_idyom_on_whole_pieces(piece, mean):
    "Louis Couperin, unmeasured prelude 7; Hindemith, pieces for flute alone, VI."
    assert abs(-np.log2(sequence_probabilities(PPM(), piece.split())).mean() - mean) < 1e-5

FIVE = "abracadabra letlettertele assanissimassa mississippi wooloobooloo".split()

@pytest.mark.parametrize("escape, update_exclusion, figures", [
    ("A", True, ".6329114 .6707616 .58326054 .0030211497 .05050506 .62925166"), ("B", False, ".29230767 .48000002 .11627905 .037974678 .08333333 .16666666"),
    ("B", True, ".066666655 .45000002 .13636366 .0483871 .076305225 .072289154"), ("AX", True, ".46352932 .64799994 .40671143 .018633539 .063926935 .35845897")])
def test_idyom_on_five_words(escape, update_exclusion, figures):
    "With escape B, and where a longer context knows all symbols of a shorter one, a context has nothing left to say."
    found = heard(PPM(escape, update_exclusion=update_exclusion), FIVE)
    places = (0, 10), (1, 12), (2, 13), (3, 8), (3, 10), (4, 11)
    assert np.abs(np.array([found[word][letter] for word, letter in places]) - numbers(figures)).max() < 1e-6

def test_without_exclusion_the_last_order_is_uniform():
    "After aab, no context: 3/5 of 2/3, and 2/5 of 1/2; the letters of abracadabra by IDyOM."
    tree = ContextTree(); tree.begin()
    for s in "aab": tree.add(s)
    assert predict(PPM(exclusion=False, order_bound=0), *states(tree, "aab", 0), dict(a=0, b=1)) == pytest.approx([.6, .4])
    right = numbers(".2 .1 .1 .26667 .08571 .31111 .08 .33333 .15385 .14286 .33333")
    assert np.abs(sequence_probabilities(PPM(exclusion=False, order_bound=0), "abracadabra") - right).max() < 1e-5

def test_method_b_with_back_off_holds_nothing_impossible():
    right = numbers(".2 .2 .2 .2 .2 .11111 .2 .09091 .21739 .26316 .29412")
    assert np.abs(sequence_probabilities(PPM("B", "back-off"), "abracadabra") - right).max() < 1e-5

def test_sums_that_are_nearly_one_are_left():
    for total, left in ((.9985, False), (.9995, True), (1.0005, False)):
        p = np.array([.5, total - .5])
        assert (normalise(p) == p).all() == left and abs(normalise(p).sum() - (total if left else 1)) < 1e-12
        assert combine(p[None, None], 7, "geometric").sum() == pytest.approx(total if left else 1, abs=1e-12)

def test_a_surprise_after_a_drone_is_finite():
    "The product of the escapes of 400 contexts is below the smallest number; nothing is impossible."
    drone = [7]*400
    tree = ContextTree(); tree.learn(drone); tree.begin()
    for s in drone: tree.add(s)
    p = predict(PPM(exclusion=False), *states(tree, drone), {7: 0, 8: 1})
    assert 0 < p[1] < 1e-200 and p[0] == pytest.approx(1)

def test_cleary_and_teahan():
    "After abracadabra, at most two letters back: c has 1/2, d 1/2 of 1/6, by method C with full exclusion; and p after r, a (5 + 3 escaped) a share of its own."
    tree = ContextTree(); tree.begin()
    for s in "abracadabra": tree.add(s)
    p = dict(zip("abcdrt", predict(PPM(smoothing="back-off", order_bound=2), *states(tree, "abracadabra", 2), {s: i for i, s in enumerate("abcdrt")})))
    assert abs(p["c"]/p["d"] - 6) < 1e-9 and abs(p["b"]/p["d"] - 2) < 1e-9 and abs(p["d"]/p["t"] - 1/6/(1/2*5/12*1/2)*2/2) < 1e-9


# the rules, written down naively

def naive_counts(sequences, open_sequence=()):
    full, news = {}, {}
    for sequence, ended in [*((s, True) for s in sequences), (open_sequence, False)]:
        for i, symbol in enumerate([*sequence, END] if ended else sequence):
            known = False
            for start in range(i + 1):
                context = tuple(sequence[start:i])
                if not known: news.setdefault(context, Counter())[symbol] += 1
                known |= symbol in full.get(context, ())
                full.setdefault(context, Counter())[symbol] += 1
    return full, news

def naive_predict(ppm, counts, history, alphabet):
    "IDyOM's rule in exact fractions."
    full, news = counts
    suffix = lambda k: tuple(history[len(history) - k:])
    known = [k for k in range(len(history) + 1) if full.get(suffix(k))]
    longest = known[-1] if known else -1
    top, selected = longest, False
    if ppm.order_bound is None:
        sure = [k for k in known if k >= 1 and len(full[suffix(k)]) == 1]
        if sure and sure[0] < longest: top, selected = sure[0], True
    elif longest > ppm.order_bound: top, selected = ppm.order_bound, True
    shift, d = {"A": (0, 1), "B": (-1, 1), "C": (0, 1), "D": (Fraction(-1, 2), 2), "AX": (0, 1)}[ppm.escape]
    p, escape, above = dict.fromkeys(alphabet, Fraction(0)), Fraction(1), set()
    for k in range(top, -1, -1):
        table = news if ppm.update_exclusion and not (selected and k == top) else full
        c = {s: n for s, n in table[suffix(k)].items() if s in p}
        t = Fraction({"A": 1, "AX": 1 + list(c.values()).count(1)}.get(ppm.escape, len(c)), d)
        S = sum((n + shift for s, n in c.items() if not ppm.exclusion or s not in above), Fraction(0))
        if S > 0:
            for s in c:
                if ppm.smoothing == "interpolation" or s not in above: p[s] += escape*S/(S + t)*(c[s] + shift)/S
            escape *= t/(S + t)
        above = set(c)
    everywhere = Fraction(1, len(p) + 1 - len(above)) if ppm.exclusion else Fraction(1, len(p))
    for s, x in list(p.items()):
        if ppm.smoothing == "interpolation" or x == 0: p[s] += escape*everywhere
    return naive_normalise(p)

def naive_normalise(p):
    "As IDyOM does it: a sum between 0.999 and 1 is left alone."
    total = sum(p.values())
    return p if .999 < total < 1 else {s: x/total for s, x in p.items()}

@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("escape", ESCAPES)
def test_every_setting_agrees_with_the_naive_model(escape, smoothing):
    rng = np.random.default_rng(0)
    for exclusion in (True, False):
        for update_exclusion in (True, False):
            for bound in (None, 0, 1, 2, 4):
                ppm = PPM(escape, smoothing, exclusion, update_exclusion, bound)
                words = ["".join(rng.choice(list("abc"), rng.integers(1, 12))) for _ in range(3)]
                tree, alphabet = ContextTree(), "abd"  # c is heard and not in the alphabet, d never heard
                for word in words[:2]: tree.learn(word)
                tree.begin()
                for i in range(len(words[2]) + 1):
                    ours = predict(ppm, *states(tree, words[2][:i], bound), {s: n for n, s in enumerate(alphabet)})
                    theirs = naive_predict(ppm, naive_counts(words[:2], words[2][:i]), words[2][:i], alphabet)
                    assert np.allclose(ours, [float(p) for p in theirs.values()], rtol=1e-12), (ppm, words, i)
                    if i < len(words[2]): tree.add(words[2][i])

def test_forgetting_leaves_what_never_was():
    rng, texts = np.random.default_rng(1), [np.random.default_rng(k).integers(0, 3, 30).tolist() for k in range(6)]
    tree, fresh = ContextTree(), ContextTree()
    places = [tree.learn(t) for t in texts]
    for k in (1, 4): tree.forget(places[k])
    for k in (0, 2, 3, 5): fresh.learn(texts[k])
    for ppm in (LONG_TERM, SHORT_TERM):
        for _ in range(50):
            history = rng.integers(0, 3, rng.integers(0, 8)).tolist()
            column = {0: 0, 1: 1, 2: 2}
            assert predict(ppm, *states(tree, history), column) == pytest.approx(predict(ppm, *states(fresh, history), column))
    start = tree.begin()
    for s in texts[1]: tree.add(s)
    tree.rewind(start)
    for k in (1, 4): tree.recall(places[k])
    for k in range(6): tree.forget(places[k])
    assert not tree.full and not tree.news and not tree.pairs

def test_a_drone_costs_no_more_than_other_notes():
    "1200 equal notes, or a trill: contexts of all lengths, but no square of time or memory."
    tree = ContextTree()
    tree.learn([7]*300)
    assert states(tree, [7]*300)[1] is False and len(states(tree, [7]*10)[0]) == 11  # the end follows 7 too: never certain
    def seconds(pitches):
        model, start = ExpectationModel().fit(CORPUS), time.process_time()
        model.learn(tune(pitches)).information_content(tune(pitches))
        return time.process_time() - start
    rng = np.random.default_rng(0)
    plain = seconds(rng.integers(60, 67, 1200))
    assert max(seconds([60]*1200), seconds([60, 62]*600)) < 3*plain + .3

@pytest.mark.parametrize("wrong, word", [(dict(escape="E"), "AX"), (dict(smoothing="kneser"), "back-off"), (dict(order_bound=-1), "-1"), (dict(order_bound=1.5), "1.5")])
def test_unknown_settings_of_ppm_are_named(wrong, word):
    with pytest.raises(ValueError, match=word): PPM(**wrong)

def test_symbols_that_cannot_be():
    with pytest.raises(ValueError, match="'z'"): sequence_probabilities(PPM(), "abz", "ab")
    with pytest.raises(ValueError, match="None"): ContextTree().learn([1, None])
    assert sequence_probabilities(PPM(), "aaa", "a").tolist() == [1, 1, 1] and len(sequence_probabilities(PPM(), "")) == 0


# the model: figures of IDyOM 1.7.1

CORPUS = [tune(p) for p in ([60, 62, 64, 65, 67], [67, 65, 64, 62, 60], [60, 64, 67, 64, 60])]
HEARD = tune([60, 62, 64, 62, 60, 67])

@pytest.mark.parametrize("mode, views, line", [
    ("stm", "cpitch", ".20000 .13333 .13043 .24138 .16667 .06154"), ("ltm", "cpitch", ".22500 .25926 .47143 .14286 .47143 .14815"),
    ("both", "cpitch", ".21264 .17972 .32654 .18815 .31498 .07934"), ("both+", "cpitch", ".21264 .17902 .32618 .19248 .34342 .07619"),
    ("both+", "cpitch cpint", ".21264 .32697 .50576 .20030 .45380 .07128")])
def test_idyom_on_melodies(mode, views, line):
    found = ExpectationModel(views.split(), mode=mode).fit(CORPUS).information_content(HEARD)
    assert np.abs(found.probability - numbers(line)).max() < 1e-5

def from_units(pitch, dur): return tune(pitch, np.array(dur)/24)
RHYTHMS = [from_units([60, 62, 60, 64, 62], [24, 48, 24, 12, 24]), from_units([64, 62, 60], [24, 24, 48])]
RHYTHM = from_units([60, 62, 60, 62], [24, 48, 24, 24])

@pytest.mark.parametrize("mode, views, targets, line", [
    ("ltm", "cpint*dur", "cpitch", "1.584963 1.280107 .429992 2.050629"), ("both+", "cpint*dur", "cpitch", "1.584963 1.379347 .635336 1.406798"),
    ("ltm", "cpint*dur", "cpitch dur", "3.1699 2.5602 1.0075 5.3236"), ("ltm", "cpitch ioi", "cpitch ioi", "1.5025 2.4532 2.4215 2.567")])
def test_idyom_over_pitch_and_time(mode, views, targets, line):
    "A linked viewpoint predicts over the product of the alphabets, summed over what is not the target; two targets; the first onset is certain."
    found = ExpectationModel(views.split(), targets.split(), mode=mode).fit(RHYTHMS).information_content(RHYTHM)
    assert np.abs(found.ic - numbers(line)).max() < 1e-4

def test_two_targets_are_one_distribution():
    "Heads: pitch 60 after a quarter; tails: 62 after two. Over the four notes there could be, probabilities sum to 1."
    rng, total = np.random.default_rng(0), 0.
    def melody(heads): return Melody(np.concatenate([[0], np.cumsum(np.where(heads[1:], 1., 2.))]), np.ones(len(heads)), np.where(heads, 60, 62))
    model = ExpectationModel("cpitch*ioi", ("cpitch", "ioi"), mode="ltm").fit([melody(rng.random(40) < .5) for _ in range(20)])
    for pitch in (60, 62):
        for wait in (1., 2.): total += 2**-model.information_content(Melody([0, 2, 4, 5, 5 + wait], [1, 1, 1, 1, 1], [60, 62, 62, 60, pitch])).ic[-1]
    assert total == pytest.approx(1, abs=2e-3)

def test_the_first_onset_is_certain():
    found = ExpectationModel(("cpitch*onset", "ioi"), ("cpitch", "ioi")).fit(RHYTHMS).information_content(RHYTHM)
    alone = ExpectationModel(("cpitch*onset", "ioi"), ("ioi", "cpitch"), mode="ltm").fit(RHYTHMS).information_content([RHYTHM])[0]
    assert found.distributions["ioi"][1].shape == (4, 3) and np.isnan(found.distributions["ioi"][1][0]).all() and np.isfinite(found.ic).all()
    assert found.ic[0] == pytest.approx(-np.log2(found.distributions["cpitch"][1][0][0])) and alone.ic[0] < 2

def test_a_missing_tonic_is_told():
    silent = tune([60, 62, 64], name="no key")
    with pytest.warns(UserWarning, match="cpintfref says nothing of 1 of 1 melodies.*'no key'"): found = ExpectationModel("cpintfref").fit(CORPUS[:1]).information_content(silent)
    assert np.allclose(found.ic, np.log2(5)) and np.isnan(found.viewpoints["cpintfref"].ic).all()
    with warnings.catch_warnings(action="error"): ExpectationModel("cpintfref").fit([with_key(m) for m in CORPUS]).information_content(with_key(silent))

def test_orders_and_weights():
    found = ExpectationModel(("cpitch", "cpint")).fit(CORPUS).information_content(HEARD)
    assert found.orders["ltm", "cpitch"].tolist()[:2] == [0, 1] and np.isnan(found.orders["stm", "cpint"][0]) and found.orders["stm", "cpitch"][0] == -1
    shares = found.weights["cpitch"]
    assert np.allclose(shares["ltm"] + shares["stm"], 1) and np.allclose(shares["ltm", "cpitch"] + shares["ltm", "cpint"], 1) and shares["ltm", "cpint"][0] == 0
    one = ExpectationModel(("cpitch", "cpint"), viewpoint_bias=0., model_bias=0.).fit(CORPUS).information_content(HEARD).weights["cpitch"]
    assert np.allclose(one["ltm"], .5) and np.allclose(one["stm", "cpint"][1:], .5)

def test_an_alphabet_by_hand():
    wide = ExpectationModel("cpitch", mode="ltm", alphabets={"cpitch": range(48, 84)})
    assert wide.information_content(HEARD).ic == pytest.approx([np.log2(36)]*6) and len(wide.fit(CORPUS).information_content(HEARD).distributions["cpitch"][0]) == 36
    with pytest.raises(ValueError, match="cpitch 67 is not in the alphabet"): ExpectationModel(alphabets={"cpitch": [60, 62, 64]}).information_content(HEARD)
    for wrong in ({"pitch": [60]}, {"cpitch": []}):
        with pytest.raises(ValueError, match="alphabet"): ExpectationModel(alphabets=wrong)

def test_rules_for_viewpoints_and_models_are_chosen_apart():
    found = {pair: ExpectationModel(("cpitch", "cpint"), combination=pair[0], model_combination=pair[1]).fit(CORPUS).information_content(HEARD) for pair in itertools.product(COMBINATIONS, (None, *COMBINATIONS))}
    assert len({tuple(e.ic.round(9)) for pair, e in found.items() if pair[1]}) == len(COMBINATIONS)**2
    assert all(np.array_equal(found[rule, None].ic, found[rule, rule].ic) for rule in COMBINATIONS)

def test_a_model_that_is_kept(tmp_path):
    model = ExpectationModel(("cpitch", "cpint*dur"), ("cpitch", "dur"), mode="both", long_term=PPM("D", order_bound=3), alphabets={"dur": [.5, 1., 2.]}).fit(RHYTHMS)
    model.save(tmp_path/"model.json")
    for again in (ExpectationModel.load(tmp_path/"model.json"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(again.information_content(RHYTHM).ic, model.information_content(RHYTHM).ic) and again.long_term == model.long_term
        assert np.array_equal(again.cross_validate(2)[1].ic, model.cross_validate(2)[1].ic)
    pickle.loads(pickle.dumps(ExpectationModel().fit(tune([60]*3000))))
    text = (tmp_path/"model.json").read_text()
    for wrong in ("", "{}", "[1]", text[:200], text.replace('"D"', '"Q"'), text.replace('"cpint*dur"', '"cpint*tone"'), text.replace("64", "1e15", 1), text.replace('"version": 1', '"version": 2')):
        (tmp_path/"model.json").write_text(wrong)
        with pytest.raises(ValueError, match="model.json"): ExpectationModel.load(tmp_path/"model.json")

def test_viewpoints_are_selected():
    "Melodies of steps 1 up and 2 down from anywhere: the interval explains them, the pitch does not."
    rng = np.random.default_rng(0)
    walks = [tune(60 + np.cumsum(rng.choice([-2, 1], 20)) + rng.integers(-9, 20)) for _ in range(8)]
    steps = select_viewpoints(walks, ["cpitch", "cpint", "cpitch-class"], 4)
    assert steps[0][0] == ("cpint",) and all(a[1] > b[1] for a, b in zip(steps, steps[1:]))
    mean = np.concatenate([e.ic for e in ExpectationModel(steps[-1][0]).fit(walks).cross_validate(4)]).mean()
    assert steps[-1][1] == pytest.approx(mean)
    with pytest.raises(ValueError, match="every target"): select_viewpoints(walks, ["cpitch", "dur"], 2, targets=("cpitch", "dur"))

def test_no_torch_is_needed_to_expect():
    code = "import sys, latentalign.perception.expectation; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules and 'music21' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

CHORALE = [73, 73, 74, 76, 73, 69, 71, 73, 74, 73, 71, 69, 69, 71, 73, 73, 71, 69, 71, 69, 73, 71, 73, 69, 66, 68, 69, 71, 73, 69, 69, 69, 71, 73, 73, 71, 69, 71, 69]

def test_a_table_that_idyom_wrote():
    "Information content and entropy of chorale 1 by the short-term model, contexts of at most five notes (examples of py2lispIDyOM)."
    ic = numbers("""4.169925 1.4329593 4.7548876 5.4429436 1.75336 5.879924 5.33985 2.0 2.662965 2.2291343 4.189478 3.9333625 3.2356286 2.0215104 1.0443089 1.9706845 3.0072439
        1.30229 1.7420189 2.8205628 2.1109095 2.3119438 2.3155494 2.9700468 7.098032 5.988685 2.7192638 2.0764983 1.1995314 2.3628054 3.0596428 2.4739316 1.6857679 0.7862607
        1.3989304 1.1640806 1.0276724 1.3331829 1.3239585""")
    entropy = numbers("""4.1699247 3.5245435 3.5245435 3.0081398 3.388834 2.8576717 3.4555743 3.6459 3.2615924 3.1125228 3.0352323 2.788356 2.7327838 2.7896008 2.4777384 2.8353958
        2.7130961 2.5396688 2.2373934 1.8663228 2.7896008 2.6914325 1.7938491 2.5260856 2.5233717 3.2394092 3.4518623 3.1400435 2.7030232 2.3936768 2.8300352 2.6918721 2.719459
        2.2578735 2.3513887 2.2468958 2.4677052 2.4897816 2.3155236""")
    alphabet = [60, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 76, 77, 78, 79]
    model = ExpectationModel(mode="stm", short_term=PPM("AX", update_exclusion=True, order_bound=5)).fit([tune([p]) for p in alphabet])
    found = model.information_content(tune(CHORALE))
    assert np.abs(found.ic - ic).max() < 1e-5 and np.abs(found.entropy - entropy).max() < 1e-5


# the model, written down naively

def entropy(p): return -sum(x*math.log2(x) for x in p.values() if x > 0)

def naive_combine(ps, bias, rule, alphabet):
    if not ps: return dict.fromkeys(alphabet, 1/len(alphabet))
    w = [1. if len(alphabet) == 1 else (entropy(p)/math.log2(len(alphabet)))**-bias for p in ps]
    rank = lambda p, a: sum(x < p[a] for x in p.values()) + (sum(x == p[a] for x in p.values()) + 1)/2
    found = {"arithmetic": lambda a: sum(wi*q[a] for wi, q in zip(w, ps))/sum(w), "geometric": lambda a: math.prod(q[a]**(wi/sum(w)) for wi, q in zip(w, ps)),
             "bayesian": lambda a: math.prod(q[a] for q in ps), "ranked": lambda a: sum(wi*rank(q, a) for wi, q in zip(w, ps))/sum(w)}[rule]
    return naive_normalise({a: found(a) for a in alphabet})

SYMBOLS = {  # of note i among notes (pitch, ioi, duration, onset); None where undefined
    "cpitch": lambda notes, i, m: notes[i][0], "cpint": lambda notes, i, m: notes[i][0] - notes[i - 1][0] if i else None, "cpitch-class": lambda notes, i, m: notes[i][0] % 12,
    "contour": lambda notes, i, m: int(np.sign(notes[i][0] - notes[i - 1][0])) if i else None, "cpintfref": lambda notes, i, m: None if m.tonic is None else (notes[i][0] - m.tonic) % 12,
    "ioi": lambda notes, i, m: notes[i][1], "dur": lambda notes, i, m: notes[i][2], "onset": lambda notes, i, m: notes[i][3],
    "ioi-ratio": lambda notes, i, m: notes[i][1]/notes[i - 1][1] if i > 1 else None, "dur-ratio": lambda notes, i, m: notes[i][2]/notes[i - 1][2] if i else None}

def naive_symbol(name, notes, i, melody):
    symbols = tuple(SYMBOLS[n](notes, i, melody) for n in name.split("*"))
    return None if None in symbols else symbols

def naive_notes(melody):
    iois = [None, *np.diff(melody.onsets).tolist()]
    return list(zip(melody.pitches.tolist(), iois, melody.durations.tolist(), melody.onsets.tolist()))

BASIC = ("cpitch", "ioi", "dur")
RESTS_ON = {"cpitch": {0}, "cpint": {0}, "contour": {0}, "cpintfref": {0}, "cpitch-class": {0}, "ioi": {1}, "ioi-ratio": {1}, "onset": {1}, "dur": {2}, "dur-ratio": {2}}

def naive_model(model, corpus, pieces):
    "Probabilities of all notes by IDyOM's rules, one at a time: over the product of the alphabets that a viewpoint rests on, summed over what is not the target."
    plus, rows = model.mode[-1] == "+", []
    alphabet = [sorted({n[b] for m in corpus + pieces for n in naive_notes(m)} - {None}) for b in range(3)]
    seen = lambda m, name, end=None: [s for i in range(len(m) if end is None else end) if (s := naive_symbol(name, naive_notes(m), i, m)) is not None]
    past = {name: [seen(m, name) for m in corpus] for name in model.viewpoints}
    kinds = dict(stm=["stm"], ltm=["ltm"]).get(model.mode.rstrip("+"), ["ltm", "stm"])
    for piece in pieces:
        notes, row = naive_notes(piece), []
        for i in range(len(piece)):
            total = 1.
            for target in map(BASIC.index, model.targets):
                if target == 1 and i == 0: continue  # the first onset is certain
                predicted = {kind: [] for kind in kinds}
                for name in model.viewpoints:
                    basics = sorted(set().union(*(RESTS_ON[n] for n in name.split("*"))))
                    if target not in basics or naive_symbol(name, notes, i, piece) is None: continue
                    could = {}
                    for values in itertools.product(*([None] if b == 1 and i == 0 else alphabet[b] for b in basics)):
                        note = [*notes[i]]
                        for b, v in zip(basics, values): note[b] = v
                        if i: note[3] = notes[i - 1][3] + note[1]
                        could[values] = naive_symbol(name, [*notes[:i], tuple(note)], i, piece)
                    now, share = seen(piece, name, i), Counter(could.values())
                    for kind in kinds:
                        ppm, counts = (model.long_term, naive_counts(past[name], now if plus else ())) if kind == "ltm" else (model.short_term, naive_counts([], now))
                        p, q = naive_predict(ppm, counts, now, list(dict.fromkeys(could.values()))), dict.fromkeys(alphabet[target], 0)
                        for values, s in could.items(): q[values[basics.index(target)]] += p[s]/share[s]
                        predicted[kind].append({a: float(x) for a, x in naive_normalise(q).items()})
                each = [naive_combine(predicted[kind], model.viewpoint_bias, model.combination, alphabet[target]) for kind in kinds]
                total *= naive_combine(each, model.model_bias, model.model_combination or model.combination, alphabet[target])[notes[i][target]]
            row.append(total)
        rows.append(row)
        if plus:
            for name in model.viewpoints: past[name].append(seen(piece, name))
    return rows

def random_tunes(count, rng):
    "Tunes in 4/4 with rhythm, in C, F or of unknown key."
    return [tune(rng.integers(60, 67, n).tolist(), rng.choice([.5, 1.], n), tonic=[0, 5, None][int(rng.integers(3))]) for n in rng.integers(2, 12, count)]

@pytest.mark.filterwarnings("ignore:viewpoint")
@pytest.mark.parametrize("views, targets", [("cpitch", "cpitch"), ("contour", "cpitch"), ("cpint cpintfref", "cpitch"), ("cpitch cpint*ioi cpintfref*dur", "cpitch"),
                                            ("contour*dur-ratio cpitch*onset", "cpitch dur"), ("cpint*contour*ioi-ratio cpitch-class ioi dur", "cpitch ioi dur")])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_agrees_with_the_naive_model(mode, views, targets):
    "Several test pieces: with a + what the first teaches is known to the second."
    rng = np.random.default_rng(3)
    corpus, pieces = random_tunes(3, rng), random_tunes(2, rng)
    for rule, models in (("geometric", None), *[pair for pair in zip(COMBINATIONS[1:], ("geometric", "arithmetic", "bayesian")) if mode == "both+"]):
        model = ExpectationModel(views.split(), targets.split(), mode=mode, combination=rule, model_combination=models)
        found = model.fit(corpus).information_content(pieces)
        for ours, theirs in zip(found, naive_model(model, corpus, pieces)): assert np.allclose(ours.probability, theirs, rtol=1e-9, atol=1e-12)

def test_other_models_can_be_put_in():
    rng = np.random.default_rng(4)
    corpus, pieces = random_tunes(4, rng), random_tunes(2, rng)
    model = ExpectationModel(["cpitch", "contour"], long_term=PPM("D", order_bound=2), short_term=PPM("B", exclusion=False), viewpoint_bias=0., model_bias=1.)
    for ours, theirs in zip(model.fit(corpus).information_content(pieces), naive_model(model, corpus, pieces)): assert np.allclose(ours.probability, theirs, atol=1e-10)

@pytest.mark.parametrize("mode", MODES)
def test_cross_validation_is_a_new_model_for_each_fold(mode):
    rng = np.random.default_rng(5)
    melodies = random_tunes(7, rng)
    model = ExpectationModel(("cpitch", "cpint*ioi"), mode=mode).fit(melodies)
    for folds in (3, 7):
        found = model.cross_validate(folds)
        for fold in range(folds):
            new = ExpectationModel(("cpitch", "cpint*ioi"), mode=mode).fit([m for i, m in enumerate(melodies) if i % folds != fold])
            new.values = model.values  # the alphabet is that of all melodies
            for ours, theirs in zip(found[fold::folds], new.information_content(melodies[fold::folds])): assert np.allclose(ours.ic, theirs.ic, atol=1e-10)
    again = model.cross_validate(3)
    assert all(np.array_equal(a.ic, b.ic) for a, b in zip(again, model.cross_validate(3))), "cross-validation must leave the counts as they were"

def test_other_targets_and_their_sum():
    rng = np.random.default_rng(6)
    corpus, piece = random_tunes(5, rng), random_tunes(1, rng)[0]
    pitch, rhythm = (ExpectationModel(views, targets).fit(corpus).information_content(piece) for views, targets in ((("cpitch",), "cpitch"), (("ioi", "ioi-ratio"), "ioi")))
    both = ExpectationModel(("cpitch", "ioi", "ioi-ratio"), ("cpitch", "ioi")).fit(corpus).information_content(piece)
    assert np.allclose(both.ic, pitch.ic + rhythm.ic) and np.allclose(both.entropy, pitch.entropy + rhythm.entropy)
    values, p = both.distributions["ioi"]
    assert values == [.5, 1.] and rhythm.ic[0] == rhythm.entropy[0] == 0 and np.isnan(p[0]).all() and np.allclose(p[1:].sum(1), 1, atol=1e-3)  # the first onset is certain
    assert np.isnan(rhythm.viewpoints["ioi"].ic[0]) and np.isfinite(rhythm.viewpoints["ioi"].ic[1:]).all()

def test_what_is_said_of_viewpoints_and_models_alone():
    model = ExpectationModel(("cpitch", "cpint")).fit(CORPUS)
    found = model.information_content(HEARD)
    alone = ExpectationModel(("cpint",)).fit(CORPUS).information_content(HEARD)
    assert np.allclose(found.viewpoints["cpint"].ic[1:], alone.ic[1:]) and np.isnan(found.viewpoints["cpint"].ic[0]) and np.isnan(found.viewpoints["cpint"].entropy[0])
    for kind in ("ltm+", "stm"):
        one = ExpectationModel(("cpitch", "cpint"), mode=kind).fit(CORPUS).information_content(HEARD)
        assert np.allclose(found.models[kind[:3]].ic, one.ic) and np.allclose(found.models[kind[:3]].entropy, one.entropy)
    values, p = found.distributions["cpitch"]
    assert np.allclose(p[np.arange(6), [values.index(x) for x in HEARD.pitches]], found.probability) and np.allclose(p.sum(1), 1)

def test_listening_changes_nothing_and_learning_does():
    model = ExpectationModel().fit(CORPUS)
    first = model.information_content(HEARD)
    model.information_content([HEARD, CORPUS[0]])
    assert np.array_equal(first.ic, model.information_content(HEARD).ic)
    assert model.learn([HEARD]).information_content(HEARD).ic.mean() < first.ic.mean()
    assert np.array_equal(model.fit(CORPUS).information_content(HEARD).ic, first.ic)

@pytest.mark.parametrize("wrong, word", [
    (dict(mode="all"), "both+"), (dict(combination="harmonic"), "arithmetic"), (dict(targets=("onset",)), "ioi"), (dict(viewpoints=("cpitch", "chord")), "cpintfref"),
    (dict(viewpoints=("dur",)), "dur"), (dict(viewpoints=("cpitch",), targets=("cpitch", "dur")), "'dur'"), (dict(viewpoints=()), "viewpoint"), (dict(viewpoints=("cpint*",)), "known"),
    (dict(viewpoints=("cpitch", "cpint", "cpint")), "twice: cpitch, cpint, cpint"), (dict(model_bias=math.nan), "nan")])
def test_unknown_names_of_the_model_are_told(wrong, word):
    with pytest.raises(ValueError, match=word.replace("+", r"\+")): ExpectationModel(**wrong)

def test_empty_corpora_and_impossible_folds():
    with pytest.raises(ValueError, match="no melodies"): ExpectationModel().fit([])
    assert len(ExpectationModel().fit(CORPUS[0]).learn(HEARD).melodies) == 2  # one melody need not be put into a list
    for folds in (1, 4, 2.5):
        with pytest.raises(ValueError, match=f"3 melodies.*{folds} folds"): ExpectationModel().fit(CORPUS).cross_validate(folds)

def test_an_interrupted_listener_is_what_it_was(monkeypatch):
    model = ExpectationModel(("cpitch", "cpint")).fit(CORPUS)
    before, folds = model.information_content(HEARD).ic, [e.ic for e in model.cross_validate(3)]
    def interrupt(*args): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("latentalign.perception.expectation.weigh_up", interrupt)
        for do in (lambda: model.information_content([HEARD, HEARD]), lambda: model.cross_validate(3)):
            with pytest.raises(KeyboardInterrupt): do()
    assert np.array_equal(model.information_content(HEARD).ic, before) and all(np.array_equal(a, b.ic) for a, b in zip(folds, model.cross_validate(3)))
    with pytest.raises(ValueError, match="no note has a value of ioi"): ExpectationModel(("ioi",), "ioi", mode="stm").information_content(tune([60]))

def test_an_alphabet_of_one_and_combinations_of_nothing():
    assert ExpectationModel().fit([tune([60, 60])]).information_content(tune([60, 60, 60])).ic.tolist() == [0, 0, 0]
    assert np.allclose(combine(np.full((2, 3, 4), np.nan), 2, "arithmetic"), .25)


# melodies

def test_bad_melodies_say_what_and_where():
    with pytest.raises(ValueError, match="'nothing' has no notes"): Melody([], [], [], name="nothing")
    with pytest.raises(ValueError, match=r"bar 2, beat 1.5 pitch 67 begins while pitch 64"): Melody([0, 1, 5.5, 5.5], [1]*4, [60, 62, 64, 67], bar=4., pickup=1.)
    with pytest.raises(ValueError, match="2.5 quarters from the beginning"): Melody([0, 2, 2.5], [1, 2, 1], [60, 62, 64])
    with pytest.raises(ValueError, match="12"): Melody([0], [1], [60], tonic=12)
    with pytest.raises(ValueError, match="not finite"): Melody([0, math.inf], [1, 1], [60, 61])
    with pytest.raises(ValueError, match="whole MIDI numbers, got 60.5"): Melody([0, 1], [1, 1], [61, 60.5])
    for pause in (0, -1):
        with pytest.raises(ValueError, match=f"duration {pause} at bar 1, beat 2"): Melody([0, 1], [1, pause], [60, 61], bar=4.)
    with pytest.raises(ValueError, match=r"2 pitches, but.*\(1,\)"): Melody([0, 1], [1], [60, 61])
    with pytest.raises(ValueError, match="polyphonic"): Melody([1, 0], [1, 1], [60, 61])

def test_unknown_viewpoints_list_the_known():
    for name in ("pitch", "cpint*pitch", ("cpint", "pitch"), ""):
        with pytest.raises(ValueError, match="known: cpitch, cpint, contour, cpintfref, ioi"): viewpoint(name)
    assert viewpoint(("cpint", "ioi")).name == "cpint*ioi" and viewpoint("cpint*ioi").basics == {"cpitch", "ioi"}

def test_viewpoints():
    melody = tune([60, 64, 62, 62, 71], [1, .5, .5, 2, 1], tonic=7)
    assert view_melody(melody, viewpoint("cpint")) == [None, 4, -2, 0, 9] and view_melody(melody, viewpoint("contour")) == [None, 1, -1, 0, 1]
    assert view_melody(melody, viewpoint("cpintfref")) == [5, 9, 7, 7, 4] and view_melody(melody, viewpoint("ioi")) == [None, 1, .5, .5, 2]
    assert view_melody(melody, viewpoint("dur")) == [1, .5, .5, 2, 1] and view_melody(melody, viewpoint("ioi-ratio")) == [None, None, .5, 1, 4]
    assert view_melody(melody, viewpoint("dur-ratio")) == [None, .5, 1, 4, .5] and view_melody(melody, viewpoint("cpint*ioi"))[:2] == [None, (4, 1.)]
    assert set(view_melody(replace(melody, tonic=None), viewpoint("cpintfref*dur"))) == {None}
    other = Melody([.5, 1, 2, 4], [.5, 1, 1, 1], [59, 61, 62, 74], tonic=2, mode=9, bar=3., pickup=1.)  # D minor
    assert view_melody(other, viewpoint("cpitch-class")) == [11, 1, 2, 2] and view_melody(other, viewpoint("onset")) == [.5, 1, 2, 4] and view_melody(other, viewpoint("posinbar")) == [2.5, 0, 1, 0]
    assert view_melody(other, viewpoint("inscale")) == [False, False, True, True] and view_melody(replace(other, mode=0), viewpoint("inscale")) == [True]*4
    assert view_melody(other, viewpoint("fifths")) == [3, 5, 0, 0] and view_melody(replace(other, tonic=11), viewpoint("fifths"))[:3] == [0, 2, -3]
    assert set(view_melody(melody, viewpoint("posinbar"))) == set(view_melody(melody, viewpoint("inscale"))) == {None}

def test_triplets_are_one_symbol():
    melody = Melody(np.arange(12)/3, np.full(12, 1/3), range(60, 72))
    assert set(view_melody(melody, viewpoint("ioi"))[1:]) == {to_ticks(1/3).item()} == set(view_melody(melody, viewpoint("dur")))

@pytest.mark.parametrize("k", [3, 5, 6, 7, 9, 10, 11, 13])
def test_equal_notes_of_tuplets_are_one_symbol(k):
    melody = Melody(np.arange(3*k)*4/k, np.full(3*k, 4/k), np.full(3*k, 60))
    for view in ("ioi", "dur"): assert len(set(view_melody(melody, viewpoint(view))[1:])) == 1
    assert set(view_melody(melody, viewpoint("ioi-ratio"))[2:]) == {1.}

def test_the_key_of_a_signature():
    assert estimate_key(tune([69, 71, 72, 74, 76, 74, 72, 69]), 0) == (9, 9) and estimate_key(tune([60, 64, 67, 72]), 0) == (0, 0) and estimate_key(tune([60, 64, 67, 72]), 9)[0] in (9, 6)

def test_the_key_of_a_scale():
    for shift in range(12): assert estimate_tonic(tune(np.array([60, 62, 64, 65, 67, 69, 71, 72]) + shift, [2, 1, 1, 1, 1, 1, 1, 2])) == shift

def midi(path, *tracks, key=None, metre=None, tempo=120):
    import symusic
    score = symusic.Score(480)
    score.tempos.append(symusic.Tempo(0, qpm=tempo))
    if key is not None: score.key_signatures.append(symusic.KeySignature(0, *key))
    if metre: score.time_signatures.append(symusic.TimeSignature(0, *metre))
    for notes in tracks:
        score.tracks.append(symusic.Track("t", 0, False))
        for onset, duration, pitch in notes: score.tracks[-1].notes.append(symusic.Note(round(480*onset), round(480*duration), pitch, 90))
    score.dump_midi(path)
    return path

LINE = [(0, 1.05, 69), (1, .5, 71), (1.5, .5, 72), (2, 2, 76)]

def test_midi_there_and_its_troubles(tmp_path):
    melody = read_melody(midi(tmp_path/"a.mid", LINE, key=(0, 1), metre=(3, 4), tempo=90))
    assert melody.pitches.tolist() == [69, 71, 72, 76] and melody.durations.tolist() == [1, .5, .5, 2] and melody.tonic == 9 and melody.bar == 3
    assert np.abs(melody.times - np.array([0, 1, 1.5, 2])*60/90).max() < 1e-5 and melody.name == "a"
    with pytest.raises(ValueError, match="no notes"): read_midi(midi(tmp_path/"b.mid"))
    with pytest.raises(ValueError, match=r"bar 2, beat 1"): read_midi(midi(tmp_path/"c.mid", [*LINE, (3, 1, 60), (3, 1, 64)], metre=(3, 4)))
    two = midi(tmp_path/"d.mid", LINE, LINE[:2])
    with pytest.raises(ValueError, match=r"0 \('t', 4 notes\), 1 \('t', 2 notes\)"): read_midi(two)
    with pytest.raises(ValueError, match=r"\[0, 1\]"): read_midi(two, track=2)
    assert len(read_midi(two, track=1)) == 2
    assert read_midi(midi(tmp_path/"e.mid", [(0, 1, 60), (0, 1, 64), (1, 1, 62)]), highest=True).pitches.tolist() == [64, 62]
    with pytest.raises(ValueError, match="unknown kind"): read_melody(midi(tmp_path/"f.mid", LINE).rename(tmp_path/"f.txt"))
    with pytest.raises(ValueError, match="no such file"): read_melody(tmp_path/"none.mid")

def chunk(*events, name=b"MTrk"):
    data = b"".join(events) + (b"\x00\xff\x2f\x00" if name == b"MTrk" else b"")
    return name + struct.pack(">I", len(data)) + data

def midi_file(path, *chunks, form=1, division=480, tracks=None):
    path.write_bytes(b"MThd" + struct.pack(">IHHH", 6, form, len(chunks) if tracks is None else tracks, division) + b"".join(chunks))
    return path

def on(wait, pitch, channel=0): return bytes([*([wait] if wait < 128 else [128 | wait >> 7, wait & 127]), 0x90 | channel, pitch, 80])
def off(wait, pitch, channel=0): return bytes([*([wait] if wait < 128 else [128 | wait >> 7, wait & 127]), 0x80 | channel, pitch, 0])

def test_notes_that_nobody_ends(tmp_path):
    "An open note lasts until the next one, the last until the track ends, but never no time at all; a key that is struck again ends itself."
    read = lambda *events: read_midi(midi_file(tmp_path/"a.mid", chunk(*events)))
    melody = read(on(0, 60), on(480, 62), on(480, 64), off(240, 64), b"\x83\x60\xff\x01\x00", on(0, 65), b"\x81\x70\xff\x01\x00")
    assert melody.pitches.tolist() == [60, 62, 64, 65] and melody.durations.tolist() == [1, 1, .5, .5] and melody.onsets.tolist() == [0, 1, 2, 3.5]
    assert read(on(0, 60), on(480, 60), off(480, 60)).durations.tolist() == [1, 1]
    assert len(read(on(0, 60), off(480, 60), on(0, 62))) == 2
    with pytest.warns(UserWarning, match="1 notes without duration"): assert len(read(on(0, 60), off(0, 60), on(0, 62), off(480, 62))) == 1

def test_channels_and_programs_part_no_track(tmp_path):
    guitar = chunk(*(e for i, p in enumerate((64, 59, 55, 50)) for e in (b"\x00" + bytes([0xc0 | i, 25]), on(0, p, i), off(480, p, i))))
    drums = chunk(*(e for _ in range(4) for e in (on(0, 36, 9), off(480, 36, 9))))
    melody = read_midi(midi_file(tmp_path/"a.mid", guitar, drums))
    assert melody.pitches.tolist() == [64, 59, 55, 50] and read_melody(tmp_path/"a.mid", part=0).pitches.tolist() == [64, 59, 55, 50]
    assert read_midi(tmp_path/"a.mid", channel=2).pitches.tolist() == [55] and read_midi(tmp_path/"a.mid", track=1, channel=9).pitches.tolist() == [36]*4
    with pytest.raises(ValueError, match="no notes in track 1"): read_melody(tmp_path/"a.mid", part=1)
    with pytest.raises(ValueError, match="only ABC has tunes"): read_melody(tmp_path/"a.mid", tune=0)

def test_tempo_changes_and_times(tmp_path):
    tempo = lambda wait, us: bytes([128 | wait >> 7, wait & 127]) + b"\xff\x51\x03" + us.to_bytes(3, "big")
    tracks = chunk(tempo(0, 1000000), tempo(960, 250000)), chunk(*(e for p in (60, 62, 64, 65) for e in (on(0, p), off(480, p))))
    assert read_midi(midi_file(tmp_path/"a.mid", *tracks)).times == pytest.approx([0, 1, 2, 2.25])

TRACK = chunk(on(0, 60), off(480, 60), on(0, 62), off(480, 62))

@pytest.mark.parametrize("wrong", [
    lambda p: midi_file(p, TRACK, division=0), lambda p: midi_file(p, TRACK, division=0xe728), lambda p: midi_file(p, TRACK, form=3), lambda p: midi_file(p, TRACK, tracks=2),
    lambda p: midi_file(p, TRACK, tracks=0), lambda p: midi_file(p, TRACK[:-4]), lambda p: midi_file(p, TRACK[:4] + b"\x00\x00\xff\xff" + TRACK[8:]), lambda p: midi_file(p, TRACK + b"MTr"),
    lambda p: midi_file(p, TRACK.replace(bytes([60, 80]), bytes([188, 80]))), lambda p: midi_file(p, chunk(b"\x00\xff\x51\x03\x00\x00\x00", on(0, 60), off(480, 60))),
    lambda p: midi_file(p, b"MTrk\x00\x00\x00\x08" + on(0, 60) + off(480, 60)[:4]), lambda p: midi_file(p, chunk(b"\x00\xff\x2f\x00", on(0, 60), off(480, 60))),
    lambda p: midi_file(p, chunk(b"\xff\xff\xff\xff\xff\x7f\x90\x3c\x50", off(480, 60))), lambda p: midi_file(p, chunk(b"\x00\x3c\x50")), lambda p: p.write_bytes(b"RIFF" + TRACK)])
def test_impossible_midi_is_refused(tmp_path, wrong):
    wrong(tmp_path/"wrong.mid")
    with pytest.raises(ValueError, match="wrong.mid"): read_midi(tmp_path/"wrong.mid")

def test_chunks_of_other_programs_are_passed_over(tmp_path):
    data = midi_file(tmp_path/"a.mid", TRACK).read_bytes() + chunk(b"anything", name=b"XFIH")
    (tmp_path/"a.mid").write_bytes(data)
    assert read_midi(tmp_path/"a.mid").pitches.tolist() == [60, 62]
    for end in range(len(data) - 16):  # cut off anywhere before the last chunk, it is no file
        (tmp_path/"cut.mid").write_bytes(data[:end])
        with pytest.raises(ValueError, match="cut.mid"): read_midi(tmp_path/"cut.mid")

@pytest.mark.parametrize("suffix", READERS)
def test_files_that_are_damaged(tmp_path, suffix):
    path = tmp_path/f"a{suffix}"
    for content in (b"", b"hello", midi(tmp_path/"whole.mid", LINE).read_bytes()[:30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.*(cannot be read|no notes)"): read_melody(path)

KERN = "**kern\n*k[f#]\n*G:\n*M3/4\n=1-\n4d\n=2\n4g\n4a\n[4b\n=3\n4b]\n8a\n8g\n4r\n==\n*-\n"

def test_kern_there_and_its_troubles(tmp_path):
    (tmp_path/"a.krn").write_text(KERN)
    melody = read_melody(tmp_path/"a.krn")
    assert melody.pitches.tolist() == [62, 67, 69, 71, 69, 67] and melody.durations.tolist() == [1, 1, 1, 2, .5, .5] and melody.tonic == 7 and melody.bar == 3
    (tmp_path/"b.krn").write_text(KERN.replace("4g\n", "4g 4dd\n"))
    with pytest.raises(ValueError, match="polyphonic: at bar"): read_score(tmp_path/"b.krn")
    (tmp_path/"c.krn").write_text("**kern\t**kern\n*M2/4\t*M2/4\n=1\t=1\n4c\t4e\n4d\t4f\n==\t==\n*-\t*-\n")
    with pytest.raises(ValueError, match="several parts"): read_score(tmp_path/"c.krn")
    assert len(read_score(tmp_path/"c.krn", part=1)) == 2
    (tmp_path/"d.krn").write_text("**kern\n*M2/4\n=1\n2r\n==\n*-\n")
    with pytest.raises(ValueError, match="no notes"): read_score(tmp_path/"d.krn")
    for key, tonic, mode in (("*e:\n*k[f#]", 4, 9), ("*k[f#]\n*e:", 4, 9), ("*k[f#]\n*a:dor", 9, 2), ("*k[f#]\n*D:mix", 2, 7), ("*E-:", 3, 0), ("*f#:", 6, 9), ("*k[f#]", 7, 0)):
        (tmp_path/"e.krn").write_text(KERN.replace("*k[f#]\n*G:", key))
        melody = read_score(tmp_path/"e.krn")
        assert (melody.tonic, melody.mode) == (tonic, mode)
    (tmp_path/"f.krn").write_text("**kern\t**dynam\n*>[A,A1,A,A2]\t*\n*>norep[A,A2]\t*\n*>A\t*>A\n=1\t=1\n4c\tf\n*>A1\t*>A1\n4d\t.\n*>A2\t*>A2\n4e\tp\n==\t==\n*-\t*-\n".replace("*>[A,A1,A,A2]\t*\n", ""))
    assert read_score(tmp_path/"f.krn").pitches.tolist() == [60, 64]

@pytest.mark.parametrize("was, now", [("4g\n4a", "4x\n4a"), ("4g\n4a", "g\n4a"), ("4g\n4a", "4\n4a"), ("4g\n4a", "4gc\n4a"), ("4g\n4a", "4g4\n4a"), ("4g\n4a", "4g\t4b\n4a"), ("*-\n", ""), ("8a", "99999a"), ("8a", "8aaaaaaa"),
                                      ("*M3/4", "*M1000000000/4"), ("*M3/4", "*M0/4"), ("*M3/4", "*Mnan/4"), ("*M3/4", "*M;/4"), ("*G:", "*G:G:"), ("*G:", "*G:foo"), ("[4b\n", "[9999*kern\n"), ("=2\n", "=2"), ("8a", "8a\xe9"), ("4r", "4")])
def test_kern_tokens_in_are_notes_out(tmp_path, was, now):
    assert was in KERN
    (tmp_path/"wrong.krn").write_text(KERN.replace(was, now, 1))
    with pytest.raises(ValueError, match="wrong.krn"): read_score(tmp_path/"wrong.krn")

TUNE = 'X:1\nT:a tune\nM:4/4\nL:1/4\nU:n=!trill!\nK:Ador\n|:"Am"A B ~c d|1 "^slow"e2 !fermata!f2:|2 {gf}a2 na2-|a4|]\n'

def test_tunes_in_abc(tmp_path):
    "Decorations, chord symbols and grace notes are no notes; of two endings the last; ties are joined."
    (tmp_path/"a.abc").write_text(TUNE)
    melody = read_melody(tmp_path/"a.abc")
    assert melody.pitches.tolist() == [69, 71, 72, 74, 81, 81] and melody.durations.tolist() == [1, 1, 1, 1, 2, 6] and (melody.tonic, melody.mode, melody.bar) == (9, 2, 4)
    (tmp_path/"b.abc").write_text("%abc\n" + TUNE + "\n" + TUNE.replace("X:1", "X:7").replace("A B", "G G") + "\n")
    with pytest.raises(ValueError, match=r"b.abc.*2 tunes, choose one: 0 \('a tune'\), 1"): read_melody(tmp_path/"b.abc")
    assert read_melody(tmp_path/"b.abc", tune=1).pitches.tolist()[:3] == [67, 67, 72] and [m.name for m in read_melodies(tmp_path/"b.abc")] == ["b-0", "b-1"]
    with pytest.raises(ValueError, match="no tune 2: it holds 2"): read_melody(tmp_path/"b.abc", tune=2)

@pytest.mark.parametrize("was, now", [("A B", "A j B"), ("A B", "A B999"), ("A B", "A B100000000"), ("A B", "A B^"), ("A B", "A 3B"), ("{gf}", "{gf"), ("{gf}", "gf}"), ("M:4/4", "M:1000000000/4"), ("M:4/4", "M:4/0"), ("L:1/4", "L:1/1000000"),
                                      ("K:Ador\n", ""), ("X:1", "x"), ("A B", "A \xe9 B"), ("U:n=!trill!\n", "")])
def test_abc_that_means_nothing_is_refused(tmp_path, was, now):
    assert was in TUNE
    (tmp_path/"wrong.abc").write_text(TUNE.replace(was, now, 1))
    with pytest.raises(ValueError, match="wrong.abc"): read_score(tmp_path/"wrong.abc")

def test_musicxml(tmp_path):
    from music21 import converter
    (tmp_path/"a.krn").write_text(KERN)
    with warnings.catch_warnings(action="ignore"): converter.parse(tmp_path/"a.krn").write("musicxml", tmp_path/"a.musicxml")
    a, b = read_melody(tmp_path/"a.krn"), read_melody(tmp_path/"a.musicxml")
    assert a.pitches.tolist() == b.pitches.tolist() and np.array_equal(a.onsets, b.onsets) and a.tonic == b.tonic

NOTE = "<note>{}<pitch><step>{}</step>{}<octave>{}</octave></pitch><duration>{}</duration><voice>1</voice></note>"
def note(step, octave=4, duration=1, alter="", before=""): return NOTE.format(before, step, f"<alter>{alter}</alter>"*(alter != ""), octave, duration)

def musicxml(*measures, attributes="<divisions>1</divisions><key><fifths>0</fifths><mode>major</mode></key><time><beats>4</beats><beat-type>4</beat-type></time>"):
    bars = "".join(f'<measure number="{i + 1}">{f"<attributes>{attributes}</attributes>"*(i == 0)}{m}</measure>' for i, m in enumerate(measures))
    return f'<score-partwise version="3.1"><part-list><score-part id="P1"><part-name>P</part-name></score-part></part-list><part id="P1">{bars}</part></score-partwise>'

def ending(number, notes, last=""): return f'<barline location="left"><ending number="{number}" type="start"/></barline>{notes}<barline location="right"><ending number="{number}" type="stop"/>{last}</barline>'

def test_musicxml_as_it_sounds(tmp_path):
    def read(*measures, **kw):
        (tmp_path/"a.musicxml").write_text(musicxml(*measures, **kw))
        return read_melody(tmp_path/"a.musicxml")
    four = "".join(map(note, "CDEF"))
    horn = read(four, attributes="<divisions>1</divisions><key><fifths>1</fifths><mode>minor</mode></key><time><beats>4</beats><beat-type>4</beat-type></time><transpose><diatonic>-4</diatonic><chromatic>-7</chromatic></transpose>")
    assert horn.pitches.tolist() == [53, 55, 57, 58] and (horn.tonic, horn.mode) == (9, 9)
    low = read(four, attributes="<divisions>1</divisions><key><fifths>0</fifths></key><transpose><diatonic>0</diatonic><chromatic>0</chromatic><octave-change>-1</octave-change></transpose>")
    assert low.pitches.tolist() == [48, 50, 52, 53] and low.tonic in (0, 9)
    again = '<repeat direction="backward"/>'
    three = read(four, ending(1, note("G", duration=4), again), ending(2, note("A", duration=4), again), ending(3, note("B", duration=4)), note("C", 5, 4))
    assert three.pitches.tolist() == [60, 62, 64, 65, 71, 72] and three.onsets.tolist() == [0, 1, 2, 3, 4, 8]
    for k in (7, 9, 11):
        tuplet = "".join(note("CDEFGAB"[i % 7]).replace("<voice>", "<voice>").replace("</voice>", f"</voice><type>quarter</type><time-modification><actual-notes>{k}</actual-notes><normal-notes>4</normal-notes></time-modification>").replace(
            "<duration>1<", "<duration>4<") for i in range(k))
        found = read(tuplet, note("C", duration=4*k), attributes=f"<divisions>{k}</divisions><time><beats>4</beats><beat-type>4</beat-type></time>")
        assert set(view_melody(found, viewpoint("ioi-ratio"))[2:k + 1]) == {1.} and found.onsets[k] == 4

@pytest.mark.parametrize("was, now", [("<beats>4", "<beats>1000000000"), ("<beats>4", "<beats>x"), ("<beat-type>4", "<beat-type>0"), ("<divisions>1", "<divisions>0"), ("<divisions>1", "<divisions>-1"), ("<duration>1", "<duration>1e300"),
    ("<octave>4", "<octave>99"), ("<step>C</step>", "<step>C</step><alter>0.5</alter>"), ("<step>C</step>", "<step>C</step><alter>-1.5</alter>"), ("<step>C</step>", "<step>H</step>"), ("<fifths>0", "<fifths>999"), ("</part>", ""),
    ("<note>", "<x>"*200 + "</x>"*200 + "<note>"), ('<score-partwise', '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">' + "".join(f'<!ENTITY b{i} "{"&b" + (str(i - 1) if i else "") + ";"}{"&b" + (str(i - 1) if i else "") + ";"}">' for i in range(60)) + ']><score-partwise x="&b59;"')])
def test_impossible_musicxml_is_refused(tmp_path, was, now):
    text = musicxml("".join(map(note, "CDEF")))
    assert was in text
    (tmp_path/"wrong.musicxml").write_text(text.replace(was, now, 1))
    with pytest.raises(ValueError, match="wrong.musicxml"): read_score(tmp_path/"wrong.musicxml")

def test_compressed_musicxml(tmp_path):
    path, container = tmp_path/"a.mxl", '<container><rootfiles><rootfile full-path="b.xml"/></rootfiles></container>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z: z.writestr("META-INF/container.xml", container); z.writestr("b.xml", musicxml("".join(map(note, "CDEF"))))
    assert read_melody(path).pitches.tolist() == [60, 62, 64, 65]
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1:])
        try: assert len(read_melody(path)) == 4
        except ValueError as e: assert "a.mxl" in str(e)
    for end in range(0, len(data) - 1, 40):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="a.mxl"): read_melody(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z: z.writestr("META-INF/container.xml", container); z.writestr("b.xml", b" "*(2**26 + 1))
    with pytest.raises(ValueError, match="64 MiB"): read_melody(path)

def test_damage_ends_in_errors_that_name_the_file(tmp_path):
    "Bits, bytes and runs of bytes changed, put in and taken out: a melody, or a ValueError with the file's name."
    rng, whole = np.random.default_rng(0), {".mid": TRACK, ".krn": KERN.encode(), ".abc": TUNE.encode(), ".musicxml": musicxml("".join(map(note, "CDEF"))).encode(), ".dat": IDYOM.encode(), ".csv": b"Time,IC_0.0\n0.1,1\n0.2,2\n"}
    whole[".mid"] = midi_file(tmp_path/"a.mid", TRACK).read_bytes()
    readers = {".dat": read_idyom, ".csv": read_ic_table}
    for suffix, data in whole.items():
        refused = 0
        for i in range(120 if suffix in (".mid", ".dat", ".csv") else 40):
            at, size = int(rng.integers(len(data))), int(rng.integers(1, 9))
            kind = i % 4
            hurt = [data[:at] + bytes([data[at] ^ 1 << size % 8]) + data[at + 1:], data[:at], data[:at] + data[at + size:], data[:at] + rng.bytes(size) + data[at:]][kind]
            path = tmp_path/f"hurt{suffix}"; path.write_bytes(hurt)
            with warnings.catch_warnings(action="ignore"):
                try: readers.get(suffix, read_melody)(path)
                except ValueError as e: refused += 1; assert f"hurt{suffix}" in str(e) and len(str(e)) < 1000
        assert refused > 10, suffix

def test_side_files_and_names(tmp_path):
    "What macOS puts beside files is no melody; a name is the same with its accents apart."
    (tmp_path/"__MACOSX").mkdir()
    for name in ("._a.krn", "__MACOSX/a.krn", ".b.krn", "caf\u00e9.krn"): (tmp_path/name).write_text(KERN)
    apart = unicodedata.normalize("NFD", "na\u00efve") + ".krn"
    (tmp_path/apart).write_text(KERN)
    assert [unicodedata.normalize("NFC", p.name) for p in find_melodies(tmp_path)] == ["caf\u00e9.krn", "na\u00efve.krn"] and read_melody(tmp_path/apart).name == "na\u00efve"

IDYOM = """dataset.id melody.id note.id melody.name vertint12 bioi deltast cpitch barlength mode keysig dur onset cpitch.information.content probability information.content entropy information.gain 
7 1 1 "chor 001" NA 0 0 73 96 0 3 24 0 4.169925 0.05555555 4.169925 4.1699247 NA 
7 1 2 "chor 001" NA 24 0 73 96 0 3 12 24 1.4329593 0.3703704 1.4329593 3.5245435 0.40041083 
7 2 1 "chor-002" NA 0 0 62 96 9 -1 24 0 4.169925 0.05555555 4.169925 NIL NA 
"""

def test_tables_of_idyom(tmp_path):
    path = tmp_path/"idyom.dat"
    path.write_text(IDYOM)
    (one, values), (two, others) = read_idyom(path)
    assert one.name == "chor 001" and one.tonic == 9 and one.bar == 4 and one.onsets.tolist() == [0, 1] and one.durations.tolist() == [1, .5] and two.tonic == 2
    assert values["ic"].tolist() == [4.169925, 1.4329593] and np.isnan(values["vertint12"]).all() and np.isnan(others["entropy"]).all()
    path.write_text(IDYOM.replace(" cpitch ", " pitch "))
    with pytest.raises(ValueError, match="no column cpitch"): read_idyom(path)
    path.write_text(IDYOM.replace("0.40041083 ", ""))
    with pytest.raises(ValueError, match="line 3: 17 values for 18 columns"): read_idyom(path)
    for text in ("", IDYOM.splitlines()[0] + "\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="no column|no notes"): read_idyom(path)
    path.write_text(IDYOM.replace("3 12 24", "3 0 24"))
    with pytest.raises(ValueError, match="'chor 001' has a note without duration, at 1 quarters"): read_idyom(path)
    with pytest.raises(ValueError, match="no such file"): read_idyom(tmp_path/"none.dat")

@pytest.mark.parametrize("was, now", [("0 0 73 96", "0 0 1e15 96"), ("0 0 73 96", "0 0 60.5 96"), ("0 0 73 96", "0 0 -3 96"), ("96 0 3 24 0 4.1", "96 0 0.5 24 0 4.1"), ("96 0 3 24 0 4.1", "96 3 3 24 0 4.1"), ("96 0 3 24 0 4.1", "1e99 0 3 24 0 4.1"), ("3 12 24", "3 12 NA"), ("3 12 24", "3 NA 24"),
                                      ("3 12 24", "3 12 -24"), ("3 12 24", "3 12 1e12"), ("3 24 0 4.1", "3 24 30 4.1"), ("7 1 2", "7 NA 2"), ("vertint12", "entropy")])
def test_impossible_tables_of_idyom(tmp_path, was, now):
    assert was in IDYOM
    (tmp_path/"wrong.dat").write_text(IDYOM.replace(was, now, 1))
    with pytest.raises(ValueError, match="wrong.dat"): read_idyom(tmp_path/"wrong.dat")

def test_tables_of_new_and_old_versions_agree(tmp_path):
    "Version 1.7.1 writes ic where older ones wrote information.content."
    for name, text in (("old", IDYOM), ("new", IDYOM.replace("cpitch.information.content", "cpitch.ic").replace(" information.content", " ic"))): (tmp_path/name).write_text(text)
    (_, old), *_ = read_idyom(tmp_path/"old")
    (_, new), *_ = read_idyom(tmp_path/"new")
    assert list(old) == list(new) and old["ic"].tolist() == new["ic"].tolist() == [4.169925, 1.4329593]

def test_tables_of_idyom_with_other_separators_and_numbers(tmp_path):
    path, table = tmp_path/"idyom.dat", IDYOM.replace("chor 001", "chor-001")
    path.write_text(table)
    (plain, known), _ = read_idyom(path)
    for between in "\t,;":
        path.write_text(table.replace(" \n", "\n").replace(" ", between))
        (melody, values), _ = read_idyom(path)
        assert np.array_equal(melody.onsets, plain.onsets) and melody.name == plain.name and all(np.array_equal(values[k], known[k], equal_nan=True) for k in known)
    path.write_text(table.replace("3 12 24", "3 25/2 24").replace("0.3703704", "3.703704d-1"))
    (melody, values), _ = read_idyom(path)
    assert values["dur"][1] == 12.5 and values["probability"][1] == .3703704
    for wrong in ("staccato", "1/0"):
        path.write_text(table.replace("1.4329593 3.52", f"{wrong} 3.52"))
        with pytest.raises(ValueError, match=f"idyom.dat, line 3, column ic: '{wrong}' is no number"): read_idyom(path)

def test_the_corpus_parts_pieces_like_the_scores():
    from latentalign.data.scores import load_scores, split_pieces
    assert {m.name for m in corpus_melodies("test")} == {p["name"] for p in split_pieces(load_scores(), "test")}
    with pytest.raises(ValueError, match="train, valid, test"): corpus_melodies("all")


# notes and frames, and whether curves agree

def test_notes_find_their_frames():
    ends = .2 + .1*np.arange(10)
    index = onset_frames([0., .1, .15, .2, .55, .58, 1.05, 1.2], ends)
    assert index.tolist() == [-1, 0, 0, 1, 4, 4, 9, -1] and onset_frames([.55], ends, .06).tolist() == [5]
    assert notes_to_frames(np.arange(1, 9), index, 10).tolist() == [5, 4, 0, 0, 11, 0, 0, 0, 0, 7]
    with pytest.raises(ValueError, match="evenly"): onset_frames([0.], [0., .1, .3])
    with pytest.raises(ValueError, match="2 values, but 1 indices"): notes_to_frames([1., 2.], np.array([0]), 3)
    with pytest.raises(ValueError, match="known: sum, max"): notes_to_frames([1.], np.array([0]), 2, "median")

def test_a_late_encoder_is_found_out():
    for late in (0, 333, -100):
        assert abs(encoder_delay(lambda wave: np.square(np.roll(wave, late).reshape(-1, 512)).sum(1)[None], 512, 512) - late) <= 32
    with pytest.raises(ValueError, match="does not hear"): encoder_delay(lambda wave: np.zeros((4, 24)), 512, 512)

def test_correlations():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50))
    assert ranks(np.array([3., 1, 4, 1])).tolist() == [2, .5, 3, .5]
    assert correlation(x, y, "pearson") == pytest.approx(np.corrcoef(x, y)[0, 1]) and correlation(x, np.exp(x)) == pytest.approx(1)
    r = np.corrcoef([x, y, x + y])
    partial = (r[0, 1] - r[0, 2]*r[1, 2])/math.sqrt((1 - r[0, 2]**2)*(1 - r[1, 2]**2))
    assert correlation(x, y, "pearson", (x + y)[:, None]) == pytest.approx(partial)
    x[3] = np.nan
    assert correlation(x, y, "pearson") == pytest.approx(np.corrcoef(np.delete(x, 3), np.delete(y, 3))[0, 1])
    with pytest.raises(ValueError, match="spearman, pearson"): correlation(x, y, "kendall")

def test_agreement_over_pieces():
    rng = np.random.default_rng(0)
    pieces = [(x, x + rng.standard_normal(40), rng.standard_normal((40, 2))) for x in rng.standard_normal((8, 40))]
    found = agreement(pieces, draws=100)
    assert isinstance(found, Agreement) and found.low < found.pooled < found.high and found.notes == 320 and len(found.pieces) == 8
    assert found.pooled == pytest.approx(correlation(*(np.concatenate(p) for p in list(zip(*pieces))[:2]), "spearman", np.concatenate([p[2] for p in pieces])))
    assert np.isnan(agreement(pieces[:1]).low)
    assert found.drawn.shape == found.drawn_mean.shape == (100,) and found.mean == pytest.approx(found.pieces.mean()) and np.tanh(interval(np.arctanh(found.pooled), np.arctanh(found.left))) == pytest.approx((found.low, found.high))
    with pytest.raises(ValueError, match="pieces to compare.*got 0"): agreement([])
    with pytest.raises(ValueError, match="got 8 and 3"): agreement(pieces, groups=[1, 2, 3])

def test_sounds_of_one_melody_are_drawn_together():
    "A piece counted twice says no more than once; all in one group leave nothing to draw."
    rng = np.random.default_rng(1)
    pieces = [(x, x + rng.standard_normal(30)) for x in rng.standard_normal((6, 30))]
    once, twice = agreement(pieces), agreement([p for p in pieces for _ in range(2)], groups=[i for i in range(6) for _ in range(2)])
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high), abs=1e-6) and once.drawn_mean == pytest.approx(twice.drawn_mean)
    assert np.isnan(agreement(pieces, groups=[0]*6).low) and np.isnan(interval(.5, np.array([np.nan, .5]))).all() and np.isnan(interval(.5, np.array([]))).all()
    silent = agreement([*pieces, (np.ones(5), np.arange(5.))])  # one piece without a correlation
    assert np.isnan(silent.pieces[-1]) and np.isfinite([silent.mean, *silent.drawn_mean]).all()

def test_tables_of_surprisal(tmp_path):
    path = tmp_path/"a.csv"
    path.write_text("Time,IC_0.0,IC_0.3\n0.1,1.5,\n0.2,nan,2\n")
    ends, ic = read_ic_table(path)
    assert ends.tolist() == [.1, .2] and list(ic) == [0., .3] and np.isnan(ic[0.][1]) and ic[.3][1] == 2
    for text, word in (("", "not Time"), ("Time,x\n1,2\n", "not Time"), ("Time,IC_0.0\n1\n", "lengths"), ("Time,IC_0.0\n1,a\n", "numbers"), ("Time,IC_low\n1,2\n", "noise levels")):
        path.write_text(text)
        with pytest.raises(ValueError, match=word): read_ic_table(path)
    for text in ("Time,IC_0.0\n0.2,1\n0.1,2\n", "Time,IC_0.0\n0.1,1\nnan,2\n", "Time,IC_0.0\n0.1,1\n0.1,2\n", "Time,IC_0.3,IC_0.30\n1,2,3\n", "Time,IC_7\n1,2\n", "Time,IC_nan\n1,2\n", "Time,IC_0.0\n1,inf\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="a.csv"): read_ic_table(path)
    path.write_bytes('\ufeff"Time","IC_0.0"\r\n0.1,NA\r\n0.2,3.5\r\n'.encode())  # as R or a spreadsheet writes it
    assert np.isnan(read_ic_table(path)[1][0.][0]) and read_ic_table(path)[1][0.][1] == 3.5
    with pytest.raises(ValueError, match="no such file"): read_ic_table(tmp_path/"none.csv")

def test_loudness():
    wave = np.concatenate([np.full(1000, .1), np.ones(1000)])
    assert np.allclose(onset_loudness(wave, 1000, [0, .99, 1, 1.999], .01), [-20, -20, 0, 0], atol=1e-6) and np.isnan(onset_loudness(wave, 1000, [-.5, 3])).all()


# sound and the notebook

def test_recordings_need_their_melodies(tmp_path):
    from latentalign.base.audio import write_audio
    from latentalign.perception.agreement import recorded_pairs
    with pytest.raises(ValueError): recorded_pairs(tmp_path)
    write_audio(tmp_path/"a.wav", np.full(4410, .1, np.float32), 44100)
    with pytest.raises(ValueError, match="without a partner: a"): recorded_pairs(tmp_path)
    midi(tmp_path/"a.mid", LINE)
    (path, melody), = recorded_pairs(tmp_path)
    assert path.name == "a.wav" and melody.times is not None
    (tmp_path/"b").mkdir(); midi(tmp_path/"b/a.mid", LINE)
    with pytest.raises(ValueError, match="several files of the same name: a"): recorded_pairs(tmp_path)
    (tmp_path/"b/a.mid").unlink(); (tmp_path/"a.mid").unlink(); (tmp_path/"a.krn").write_text(KERN)
    with pytest.raises(ValueError, match="without times"): recorded_pairs(tmp_path)

def test_the_command_writes_one_table(tmp_path, capsys):
    import csv
    from latentalign.tools.command import main
    (tmp_path/"in").mkdir()
    (tmp_path/"in/a.krn").write_text(KERN); (tmp_path/"in/b.krn").write_text(KERN[:40])
    midi(tmp_path/"in/c.mid", LINE)
    line = ["expect", str(tmp_path/"in"), "--heard", str(tmp_path/"heard"), "--viewpoints", "cpitch,cpint*dur", "--out", str(tmp_path/"t.csv")]
    (tmp_path/"heard").mkdir(); (tmp_path/"heard/d.krn").write_text(KERN)
    assert main(line) == 1 and "b.krn" in capsys.readouterr().err
    with open(tmp_path/"t.csv", encoding="utf-8") as file: rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["melody", "note", "onset", "duration", "pitch", "ic", "entropy", "ic.cpitch", "entropy.cpitch", "ic.cpint*dur", "entropy.cpint*dur"] and [r["melody"] for r in rows] == ["a"]*6 + ["c"]*4
    found = ExpectationModel(("cpitch", "cpint*dur")).fit(read_melody(tmp_path/"heard/d.krn")).information_content(read_melody(tmp_path/"in/a.krn"))
    assert np.allclose([float(r["ic"]) for r in rows[:6]], found.ic, atol=1e-5) and rows[0]["ic.cpint*dur"] == "NaN"
    assert main(line) == 2 and "already" in capsys.readouterr().err and main([*line, "--overwrite"]) == 1
    write_expectation(tmp_path/"u.csv", [HEARD], [ExpectationModel().fit(CORPUS).information_content(HEARD)])
    assert len((tmp_path/"u.csv").read_text().splitlines()) == 7

TOP = Path(__file__).resolve().parent.parent

def run_notebook(name, folder, **parameters):
    "A notebook through papermill; returns its report."
    import papermill
    with warnings.catch_warnings(action="ignore"):
        papermill.execute_notebook(TOP/"nbs"/name, folder/name, parameters | {"out": str(folder/"out")}, progress_bar=False, cwd=TOP, kernel_name="python3")
    return json.loads((folder/"out"/"report.json").read_text())

def test_the_notebook_tells_a_known_correlation(tmp_path):
    "Tables of an audio model that knows the symbolic surprisal best at noise level 0.4, one variant better than the other."
    from latentalign.perception.agreement import play_melody
    rng, folders = np.random.default_rng(0), {name: tmp_path/name for name in ("aligned", "unaligned")}
    model = ExpectationModel(("cpitch", "cpint*cpintfref")).fit(corpus_melodies("train") + corpus_melodies("valid"))
    for melody in corpus_melodies("test"):
        wave, timed = play_melody(melody[:20], 73)
        expected, ends = model.information_content(timed).ic, np.arange(1, len(wave)/4410)/10
        at, z = onset_frames(timed.times, ends), (expected - expected.mean())/expected.std()
        for (name, folder), best in zip(folders.items(), (.9, .5)):
            columns = [ends]
            for level in (0., .4, .8):
                r, values = best*(1 - 1.5*abs(level - .4)), np.zeros(len(ends))
                values[at] = r*z + (1 - r*r)**.5*rng.standard_normal(len(z))
                columns.append(values)
            folder.mkdir(exist_ok=True)
            np.savetxt(folder/f"{melody.name}-73.csv", np.stack(columns, 1), delimiter=",", header="Time,IC_0.0,IC_0.4,IC_0.8", comments="")
    report = run_notebook("evaluate_expectation.ipynb", tmp_path, tables=",".join(f"{k}={v}" for k, v in folders.items()), essen=0, programs="73", notes=20, viewpoints="cpitch,cpint*cpintfref")
    row = lambda variant, level, kind="pearson": next(r for r in report["rows"] if (r["variant"], r["noise_level"], r["kind"]) == (variant, level, kind))
    for variant, best in (("aligned", .9), ("unaligned", .5)):
        for level in (0., .4, .8): assert abs(row(variant, level)["mean"][0] - best*(1 - 1.5*abs(level - .4))) < .15
        value, low, high = row(variant, .4)["pooled"]
        assert low < value < high and len(row(variant, .4)["each"]) == report["sounds"] == report["melodies"]
        found = report["findings"]["levels"][variant]
        assert found["best"] == .4 and found["best_inside"] > .95 and found["above_clean"][1] > 0
    difference = {d["noise_level"]: d["pooled"] for d in report["findings"]["variants"]}
    assert list(difference) == [0., .4, .8] and difference[.4][1] > .2 and (report["findings"]["variants"][0]["one"], report["findings"]["variants"][0]["other"]) == ("aligned", "unaligned")
    assert (tmp_path/"out/levels.png").stat().st_size > 1000 and (tmp_path/"out/notes.png").exists()

def untrained_surprisal(folder):
    "A surprisal model with random weights, in a folder."
    import torch
    from latentalign import Autoencoder
    from latentalign.codec.autoencoder import fingerprint
    from latentalign.surprisal.listener import SequenceConfig
    from latentalign.surprisal.model import Surprisal, SurprisalConfig
    torch.manual_seed(0)
    encoder = Autoencoder.from_pretrained("m2l")
    sizes = SequenceConfig(channels=encoder.config.latent_channels, width=16, depth=1, heads=1, head_width=16, rotary_width=8, flow_depth=1, expansion=2)
    Surprisal(SurprisalConfig(sizes, "m2l", fingerprint(encoder), pool=1)).attach(encoder).save_pretrained(folder)

def test_the_notebook_hears_own_recordings_with_a_model(tmp_path):
    "Three recordings, the MIDI file of one of them names no key; an untrained model agrees with nothing in particular, but every number is there."
    from latentalign.base.audio import write_audio
    from latentalign.perception.agreement import play_melody
    untrained_surprisal(tmp_path/"model")
    own = tmp_path/"own"; own.mkdir()
    for i, melody in enumerate(corpus_melodies("test")[:3]):
        wave, timed = play_melody(melody[:12], 0)
        write_audio(own/f"{i}.wav", wave, 44100)
        midi(own/f"{i}.mid", list(zip(timed.onsets - timed.onsets[0], timed.durations, timed.pitches)), key=(0, 0) if i else None)
    report = run_notebook("evaluate_expectation.ipynb", tmp_path, models=f"untrained={tmp_path/'model'}", data=str(own), noise_levels="0,0.5", notes=10, essen=0, viewpoints="cpint")
    assert report["melodies"] == report["sounds"] == 3 and report["settings"]["data"] == "own" and abs(report["settings"]["delay"]["untrained"]) < .2
    assert len(report["rows"]) == 4 and all(r["notes"] >= 20 and all(-1 <= v <= 1 for key in ("pooled", "mean", "partial") for v in r[key]) for r in report["rows"])
    assert {p.name for p in (tmp_path/"out/untrained").iterdir()} == {"0.csv", "1.csv", "2.csv", "made.json"}
