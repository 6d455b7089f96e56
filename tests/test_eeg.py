"Response functions, what surprisal adds to them, EEG files of every format, and the simulator whose truth is known."
import json, struct, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from latentalign.perception.recordings import REFERENCES, Recording, Stimulus, align, prepare
from latentalign.perception.recordings import resample_stimulus, resample_trials
from latentalign.perception.matlab import OtherProcess, VERSIONS, is_hdf5, read_mat, write_mat
from latentalign.perception.formats import cells, cnd_recording, read_bids, read_cnd, read_events, read_npz
from latentalign.perception.formats import write_cnd, write_npz
from latentalign.perception.simulation import BrainResponse, RESPONSES, detection_power, flat_positions
from latentalign.perception.simulation import head_positions, pink_noise, simulate_eeg
from latentalign.perception.regressors import envelope, held_frames, impulses, spectral_flux
from latentalign.perception.responses import Response, TRFOptions, check_trials, nested_response
from latentalign.perception.responses import penalty_matrix, prediction_correlation, trained_weights
from latentalign.perception.responses import trial_products
from latentalign.perception.gains import FrameFeature, Gain, NULLS, NoteFeature, corrected_p, feature_gain
from latentalign.perception.gains import group_gain, read_notes

RATE = 32
quiet = lambda: warnings.catch_warnings(action="ignore")


@pytest.fixture
def trials():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((320 + 64*i, 4)) for i in range(3)]

def notes(minutes, trials=4, seed=0):
    rng, samples = np.random.default_rng(seed), round(60*minutes/trials*RATE)
    onsets = [np.cumsum(rng.uniform(.2, .6, round(samples/RATE/.4))) for _ in range(trials)]
    ic = NoteFeature(onsets, [rng.gamma(2, 1.5, len(o)) for o in onsets])
    features = {"onset": [impulses(o, None, samples, RATE) for o in onsets], "IC": ic.as_impulses([samples]*trials, RATE)}
    return Stimulus(features, RATE), ic


# features

def test_impulses_stand_where_notes_begin():
    assert impulses([.25, .75, .751, 2.], None, 64, 64)[:, 0].nonzero()[0].tolist() == [16, 48]
    assert impulses([.25, .25, .5], [2., 3., np.nan], 64, 64).sum() == 5
    with pytest.raises(ValueError, match="2 onsets, but 1 values"): impulses([0., 1.], [1.], 64, 64)

def test_impulses_round_half_up():
    "Half way between two samples the later one is meant, be it even or odd (rounding half to even gives 0, 2, 2, 4)."
    assert impulses(np.array([.5, 1.5, 2.5, 3.5])/64, None, 64, 64)[:, 0].nonzero()[0].tolist() == [1, 2, 3, 4]
    events = np.zeros((8, 1)); events[[1, 3, 5]] = 1
    assert resample_stimulus(Stimulus({"a": [events]}, 64, ("a",)), 32).features["a"][0][:, 0].nonzero()[0].tolist() == [1, 2, 3]

@pytest.mark.parametrize("call, word", [
    (lambda: impulses([0., np.nan], None, 9, 9), "onset 1 is not finite"), (lambda: impulses([0.], [np.inf], 9, 9), "value 0 is infinite"),
    (lambda: held_frames(np.ones(3), [.2, .1, .3], 9, 9), "rise"), (lambda: held_frames(np.ones(3), [.1, np.nan, .3], 9, 9), "rise"), (lambda: held_frames(np.ones(3), [.1, .1, .3], 9, 9), "rise"),
    (lambda: held_frames(np.ones(2), [.1, .2, .3], 9, 9), "2 values and 3 times"), (lambda: held_frames([np.inf, 1.], [.1, .2], 9, 9), "frame 0 is infinite"),
    (lambda: read_notes([np.array([[1.], [np.nan]])], None, 9), "not finite"),
    (lambda: Stimulus({"a": [np.full((3, 1), np.nan)]}, 64), "finite"), (lambda: Stimulus({"a": [np.zeros(3)]}, 64), r"\(3,\)"), (lambda: Stimulus({}, np.inf), "inf Hz"), (lambda: Stimulus({}, 64, ("a",)), "no feature 'a'")])
def test_impossible_numbers_are_refused(call, word):
    with pytest.raises(ValueError, match=word): call()

def test_nobody_guesses_what_is_an_impulse():
    n = np.arange(128*60)
    gated = np.where(n % 1024 < 130, .2 + np.abs(np.sin(n/20)), 0.)[:, None]  # zero most of the time, and no events
    dense = (n % 3 == 0).astype(float)[:, None]                               # events every third sample
    with pytest.raises(ValueError, match="which of the features gated, dense are impulses"): resample_stimulus(Stimulus({"gated": [gated], "dense": [dense]}, 128), 64)
    slow = resample_stimulus(Stimulus({"gated": [gated], "dense": [dense]}, 128, ("dense",)), 64).features
    assert abs(2*slow["gated"][0].sum()/gated.sum() - 1) < .01 and slow["dense"][0].sum() == dense.sum()

@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_sound_features_know_when_and_how_loud(rate):
    wave = np.zeros(2*rate); wave[rate//2:rate] = .5
    loud = envelope(wave, rate, 64, power=1.)
    assert loud.shape == (128, 1) and np.allclose(loud[33:63], .5) and np.allclose(loud[:32], 0) and np.allclose(loud[65:], 0)
    assert spectral_flux(wave, rate, 64).shape == (128, 1) and abs(spectral_flux(wave, rate, 64)[:, 0].argmax() - 32) <= 1

def test_frames_are_held():
    held = held_frames(np.array([1., np.nan, 3.]), np.array([.5, .75, 1.]), 80, 64)[:, 0]
    assert held[:16].tolist() == [0]*16 and held[16:32].tolist() == [1]*16 and held[32:48].tolist() == [0]*16 and held[48:64].tolist() == [3]*16 and held[64:].tolist() == [0]*16


# the regression

def test_weights_and_correlations_are_those_of_mtrf():
    from mtrf.model import TRF
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((400 + 10*i, 2))*[3, .1] + 1 for i in range(4)]
    y = [.5*np.roll(a[:, :1], 3, 0) - 20*np.roll(a[:, 1:], 5, 0) + rng.standard_normal((len(a), 3)) for a in x]
    options, train = TRFOptions(-.05, .3), np.array([0, 1, 3])
    products = trial_products(x, y, RATE, options)
    assert products.lags.tolist() == list(range(-2, 11))  # floor(tmin fs) … ceil(tmax fs)
    (weights,), scale = trained_weights(products, train, [(.1,)])
    xs, ys = (np.concatenate([t[i] for i in train]).std(0) for t in (x, y))
    model = TRF(); model.train([x[i]/xs for i in train], [y[i]/ys for i in train], RATE, options.tmin, options.tmax, .1)
    _, r = model.predict([x[2]/xs], [y[2]/ys], average=False)
    assert np.allclose(weights[1:].reshape(2, -1, 3, order="F"), model.weights) and np.allclose(weights[0], np.ravel(model.bias))
    assert np.allclose(prediction_correlation(products, 2, weights, scale), r)

@pytest.mark.parametrize("penalty, columns, strengths", [("ridge", 2, (.3,)), ("tikhonov", 1, (.3,)), ("banded", 2, (.3, 30.))])
def test_penalties_are_those_of_mtrf_on_data_as_they_are(penalty, columns, strengths):
    from mtrf.matrices import banded_regularization, fit_weights_with_covariance_matrices
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((300, columns))*3 + 1 for _ in range(3)]
    y = [a @ rng.standard_normal((columns, 2)) + rng.standard_normal((300, 2)) for a in x]
    options, train = TRFOptions(-.05, .3, penalty=penalty, standardise=False), np.arange(3)
    products = trial_products(x, y, RATE, options)
    strength = banded_regularization(len(products.lags), strengths, [1, 1], np) if penalty == "banded" else strengths[0]
    theirs = fit_weights_with_covariance_matrices(products.xx.mean(0), products.xy.mean(0), RATE, strength, penalty)
    (ours,), scale = trained_weights(products, train, [strengths], options)
    assert np.allclose(ours, theirs) and (scale == 1).all()

def test_tikhonov_never_mixes_features():
    "w M w of two features is half the sum of squared steps from lag to lag, each feature on its own; the constant is free."
    w = np.random.default_rng(0).standard_normal((5, 2))
    m = penalty_matrix(2, 5, (3.,), TRFOptions(penalty="tikhonov"))
    column = np.r_[7., w.ravel()]
    assert column @ m @ column == pytest.approx(3*(np.diff(w, axis=0)**2).sum()/2)

def test_bands_have_a_lambda_each():
    options = TRFOptions(penalty="banded", bands=(2,))
    assert np.diag(penalty_matrix(3, 2, (5., 7.), options)).tolist() == [0, 5, 5, 7, 5, 5, 7]
    rng = np.random.default_rng(0)
    x = [np.hstack([rng.standard_normal((400, 1)), rng.standard_normal((400, 1))]) for _ in range(4)]
    y = [a[:, :1] + .3*rng.standard_normal((400, 1)) for a in x]
    options = TRFOptions(0, .1, (1e-3, 1e7), 4, penalty="banded")
    with quiet(): found = nested_response(trial_products(x, y, RATE, options), options)
    assert found.lambdas.tolist() == [[1e-3, 1e7]]*4 and found.mean_r > .9
    for wrong, word in ((dict(penalty="lasso"), "ridge, tikhonov, banded"), (dict(bands=(1,)), "bands"), (dict(penalty="banded", bands=(0,)), "bands")):
        with pytest.raises(ValueError, match=word): TRFOptions(**wrong)
    wide = TRFOptions(0, .1, (1.,), penalty="banded", bands=(2, 1))
    with pytest.raises(ValueError, match="2 . 1 columns, but there are 2"): nested_response(trial_products(x, y, RATE, wide), wide)

def test_not_standardised_weights_have_the_units_of_the_data():
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((600, 1)) for _ in range(4)]
    y = [5*a + .1*rng.standard_normal((600, 1)) for a in x]
    options = TRFOptions(0, .05, (1e-6,), standardise=False)
    with quiet(): found = nested_response(trial_products([100*a for a in x], y, RATE, options), options)
    assert found.weights[0, 0, 0]/RATE == pytest.approx(.05, rel=.01)  # µV per unit of the feature

def test_scale_of_features_and_eeg_changes_nothing():
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((300, 2)) for _ in range(4)]
    y = [a + rng.standard_normal((300, 2)) for a in x]
    options = TRFOptions(0, .2, (1e-2, 1., 1e2), 3)
    with quiet():
        one = nested_response(trial_products(x, y, RATE, options), options)
        two = nested_response(trial_products([1e3*a + 7 for a in x], [1e-6*b for b in y], RATE, options), options)
    assert np.allclose(one.r, two.r, atol=1e-4) and np.array_equal(one.lambdas, two.lambdas) and np.allclose(one.weights, two.weights, rtol=.02, atol=.02*np.abs(one.weights).max())

def test_lambda_is_not_chosen_on_the_test_trial():
    "Changing one trial's EEG must not change the weights that predict it."
    rng = np.random.default_rng(2)
    x = [rng.standard_normal((300, 1)) for _ in range(5)]
    y = [np.roll(a, 2, 0) + rng.standard_normal((300, 1)) for a in x]
    options = TRFOptions(0, .2, (1e-2, 1., 1e2), 5)
    with quiet():
        one = nested_response(trial_products(x, y, RATE, options), options)
        flipped = nested_response(trial_products(x, [-y[0], *y[1:]], RATE, options), options)
    assert np.allclose(flipped.r[0], -one.r[0]) and flipped.lambdas[0] == one.lambdas[0]

def test_known_response_functions_come_back():
    stimulus, _ = notes(6)
    listener, = simulate_eeg(stimulus, {name: RESPONSES[name] for name in ("onset", "IC")}, snr_db=0, channels=6, spread=0)
    options = TRFOptions(-.1, .6)
    with quiet(): found = nested_response(trial_products([np.hstack(p) for p in zip(*stimulus.features.values())], listener.trials, RATE, options), options)
    for k, name in enumerate(("onset", "IC")):
        truth, weights = RESPONSES[name].kernel(found.times)*(found.times >= 0), found.weights[k]
        assert np.corrcoef(truth, weights[:, np.abs(weights).max(0).argmax()])[0, 1] > .95
    assert isinstance(found, Response) and found.r.shape == (4, 6) and found.mean_r > .4

def test_a_grid_that_ends_at_the_best_value_is_told():
    rng = np.random.default_rng(3)
    x = [np.convolve(rng.standard_normal(307), np.ones(8), "valid")[:, None] for _ in range(4)]  # slow, so that too much ridge smears the answer
    y = [np.roll(a, 2, 0) - np.roll(a, 4, 0) + rng.standard_normal((300, 1)) for a in x]
    def tell(grid, tmax, cut=300):
        options = TRFOptions(0, tmax, grid, 4)
        with warnings.catch_warnings(record=True, action="always") as told: nested_response(trial_products([a[:cut] for a in x], [a[:cut] for a in y], RATE, options), options)
        return [str(w.message) for w in told]
    assert tell((.1, 1e9), .2) == ["in 4 of 4 folds the best lambda is 0.1, the first of the grid: widen it"]
    assert tell((1e-9, .1), 2., 90) == ["in 4 of 4 folds the best lambda is 0.1, the last of the grid: widen it"]  # too many lags for so short trials
    assert tell((1e-9, .1, 1e9), 2., 90) == [] == tell((1.,), .2)  # a grid of one is meant

@pytest.mark.parametrize("change, word", [
    (lambda x, y: (x, y[:3]), "4 trials of features, but 3 of EEG"), (lambda x, y: (x[:2], y[:2]), "at least 3 trials, got 2"),
    (lambda x, y: ([x[0][:-1], *x[1:]], y), "trial 0: 99 samples of features, but 100"), (lambda x, y: ([x[0]*np.nan, *x[1:]], y), "trial 0: features that are not finite"),
    (lambda x, y: (x, [y[0], np.where(np.arange(3) == 1, np.nan, y[1]), *y[2:]]), r"trial 1: EEG channels \[1\] have values that are not finite"),
    (lambda x, y: (x, [*y[:2], y[2]*[1, 1, 0], y[3]]), r"trial 2: EEG channels \[2\] are flat"),
    (lambda x, y: (x, [*y[:2], y[2]*[1, 1e-13, 1] + 5, y[3]]), r"trial 2: EEG channels \[1\] are flat")])
def test_bad_trials_are_named(change, word):
    rng = np.random.default_rng(4)
    with pytest.raises(ValueError, match=word): check_trials(*change([rng.standard_normal((100, 1)) for _ in range(4)], [rng.standard_normal((100, 3)) for _ in range(4)]))

def test_bad_options():
    for wrong, word in ((dict(tmin=.6, tmax=.1), "first lag"), (dict(lambdas=(1., .1)), "rising"), (dict(lambdas=()), "positive"), (dict(lambdas=(0.,)), "positive"), (dict(lambdas=(np.nan,)), "positive"), (dict(folds=2), "3 folds")):
        with pytest.raises(ValueError, match=word): TRFOptions(**wrong)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="too short for lags"): trial_products([rng.standard_normal((9, 1))]*3, [rng.standard_normal((9, 1))]*3, RATE, TRFOptions())


# the gain

OPTIONS = TRFOptions(0, .5, (1e-2, 1., 1e2), 3)

def gains(responses, snr_db, people, shuffles=19, minutes=2., seed=0):
    stimulus, ic = notes(minutes, 3, seed)
    listeners = simulate_eeg(stimulus, responses, snr_db, people, channels=2, seed=seed)
    with quiet(): return [feature_gain(stimulus.features["onset"], ic, p.trials, RATE, OPTIONS, shuffles, seed=i) for i, p in enumerate(listeners)]

def test_an_effect_is_found_and_p_is_the_share_of_shuffles():
    found, = gains({name: RESPONSES[name] for name in ("onset", "IC")}, -3, 1)
    assert found.p == 1/20 and found.gain > found.null.max() and found.effect > 3 and found.channels.shape == (2,) and found.with_it.weights.shape[0] == 2
    assert found.gain == pytest.approx(found.with_it.mean_r - found.without.mean_r) == pytest.approx(found.channels.mean())

def test_song_without_notes_is_a_continuous_feature():
    "Surprisal held over frames of 0.1 s, answered by the brain as it is; and not answered."
    rng, samples = np.random.default_rng(5), 60*RATE
    ends = [np.arange(1, 601)/10]*4
    drift = [np.convolve(rng.standard_normal(619), np.ones(20)/20**.5, "valid") for _ in ends]
    song = FrameFeature(ends, drift)
    held = [np.repeat(v, 16)[np.minimum(np.arange(samples)*5, 9599)][:, None] for v in drift]  # frame k covers 0.1 k … 0.1 (k + 1) s
    assert all(np.allclose(a, b - v.mean()) for a, b, v in zip(song.as_impulses([samples]*4, RATE), held, drift))
    base = [rng.standard_normal((samples, 1)) for _ in ends]
    eeg = [b + h + 2*rng.standard_normal((samples, 1)) for b, h in zip(base, held)]
    with quiet(): found, nothing = (feature_gain(base, song, e, RATE, OPTIONS, 9) for e in (eeg, [b + 2*rng.standard_normal((samples, 1)) for b in base]))
    assert found.p == .1 and found.gain > .1 > abs(nothing.gain) and nothing.p > .1
    turned = song.changed(NULLS["shift"], (0, 0))
    for a, b in zip(turned.values, drift): assert any(np.array_equal(a, np.roll(b, k)) for k in range(60, 541)) and isinstance(turned, FrameFeature)

def test_trials_of_notes_must_match():
    x, note = [np.random.default_rng(k).standard_normal((100, 1)) for k in range(3)], NoteFeature([[1.]]*3, [[1.]]*3)
    for base, feature, shuffles, word in ((x[:2], note, 1, "2 trials of features and 3 of notes, but 3"), (x, NoteFeature([[1.]]*2, [[1.]]*2), 1, "2 of notes"), (x, note, -1, "got -1")):
        with pytest.raises(ValueError, match=word): feature_gain(base, feature, x, RATE, shuffles=shuffles)

def test_without_an_effect_p_values_are_uniform():
    p = np.sort([g.p for g in gains({"onset": RESPONSES["onset"]}, -10, 40)])
    assert np.abs(p - np.arange(1, 41)/40).max() < .26 and np.abs(p - np.arange(40)/40).max() < .26  # Kolmogorov-Smirnov, 1 %

def test_a_group():
    some = gains({name: RESPONSES[name] for name in ("onset", "IC")}, -12, 4)
    group = group_gain(some)
    assert group.participants == 4 and group.gain == pytest.approx(np.mean([g.gain for g in some])) and group.p == 1/20 and group.d > 1
    with pytest.raises(ValueError, match="same number of shuffles"): group_gain([some[0], replace(some[1], null=some[1].null[:3])])
    with pytest.raises(ValueError, match="shuffles"): group_gain([])
    assert isinstance(some[0], Gain)

def test_shuffling_keeps_trials_and_values():
    _, ic = notes(2)
    for change in NULLS.values():
        other = ic.changed(change, (0, 1))
        assert all(sorted(a) == sorted(b) and not np.array_equal(a, b) for a, b in zip(ic.values, other.values)) and other.onsets is ic.onsets
    moved = ic.changed(NULLS["shift"], (0, 1)).values[0]
    assert any(np.array_equal(moved, np.roll(ic.values[0], k)) for k in range(1, len(moved))), "a shift keeps the order"

def test_the_same_notes_are_changed_alike_in_everybody():
    "With a trial missing, in another order, and for another feature of the same notes."
    _, ic = notes(3)
    less = NoteFeature(ic.onsets[:0:-1], [2*v for v in ic.values[:0:-1]])
    for change in NULLS.values():
        whole, part = ic.changed(change, (5, 2)), less.changed(change, (5, 2))
        assert all(np.array_equal(2*a, b) for a, b in zip(whole.values[:0:-1], part.values)) and not np.array_equal(whole.values[1], ic.changed(change, (5, 3)).values[1])

def test_what_drifts_is_no_surprisal():
    "Surprisal that drifts, against EEG that drifts in the same manner but for reasons of its own: the correlation of 40 notes."
    rng, false = np.random.default_rng(0), {name: [] for name in NULLS}
    walk = lambda: (lambda x: (x - x.mean())/x.std())(np.convolve(rng.standard_normal(59), np.ones(20), "valid"))
    for trial in range(250):
        values, answers = walk(), walk()
        for name, change in NULLS.items():
            null = [change(values, np.random.default_rng((trial, k))) @ answers for k in range(39)]
            false[name].append((1 + np.sum(np.array(null) >= values @ answers))/40 <= .05)
    assert np.mean(false["shift"]) < .11 and np.mean(false["shuffle"]) > .2

def test_p_values_of_several_features_are_corrected():
    rng = np.random.default_rng(0)
    gain = lambda value: replace(like, gain=value, null=rng.standard_normal(99))
    like, = gains({"onset": RESPONSES["onset"]}, -10, 1, shuffles=2)
    assert corrected_p({"found": [gain(9.)], **{str(k): [gain(0.)] for k in range(6)}})["found"] == 1/100
    families = [min(corrected_p({k: [gain(float(rng.standard_normal()))] for k in range(8)}).values()) <= .05 for _ in range(300)]
    assert np.mean(families) < .09                                                    # one by one: 34 %
    with pytest.raises(ValueError, match="same number of shuffles, 2 or more"): corrected_p({"one": [replace(like, null=like.null[:1])]})

def test_detection_power():
    assert detection_power(0.) == pytest.approx(.05) and detection_power(1.6449) == pytest.approx(.5, abs=1e-4) and detection_power(1., 4.) == pytest.approx(detection_power(2.))
    for n in (19, 99): assert detection_power(0., shuffles=n) == pytest.approx(.05)
    rng = np.random.default_rng(0)
    gains, shuffled = 2 + rng.standard_normal(20000), np.sort(rng.standard_normal((20000, 39)))
    assert detection_power(2., shuffles=39) == pytest.approx(np.mean(gains > shuffled[:, -2]), abs=.012)  # p = 2/40 at most: one shuffle may be above
    assert detection_power(9., shuffles=18) == 0 < detection_power(2., shuffles=19) < detection_power(2., shuffles=99) < detection_power(2.)


# recordings

def test_bad_recordings_are_named(trials):
    nan, flat = [t.copy() for t in trials], [t.copy() for t in trials]
    nan[1][7, 2], flat[0][:, 3] = np.nan, 2
    names = ("Fz", "Cz", "Pz", "Oz")
    for bad, word in ((nan, "trial 1: channels Pz have values that are not finite"), (flat, r"trial 0: channels Oz have no signal \(flat\)"), ([], "no trials"), ([trials[0][:0]], "empty"),
                      ([trials[0], trials[1][:, :3]], "different numbers of channels"), ([t[:, 0] for t in trials], "shape")):
        with pytest.raises(ValueError, match=word): Recording(bad, 64, names if bad is nan or bad is flat else ())
    with pytest.raises(ValueError, match="4 channels, but 2 names"): Recording(trials, 64, ("Fz", "Cz"))
    with pytest.raises(ValueError, match="4 channels, but 3 positions"): Recording(trials, 64, positions=np.ones((3, 3)))
    with pytest.raises(ValueError, match="3 trials, but an order of 2"): Recording(trials, 64, order=(1, 2))
    for mastoids in (trials[:2], [t[:100] for t in trials]):
        with pytest.raises(ValueError, match="mastoids of other trials or lengths"): Recording(trials, 64, mastoids=mastoids)
    with pytest.raises(ValueError, match="0 Hz"): Recording(trials, 0)

def test_alignment_and_its_errors(trials):
    one = Recording(trials, 64., name="listener")
    heard = Stimulus({"onset": [np.ones((len(t) + 10, 1)) for t in trials], "other": [np.ones((len(t) - 5, 1)) for t in trials]}, 64.)
    stimulus, cut = align(heard, one)
    assert all(len(t) == len(u) == len(f) == len(v) - 5 for t, u, f, v in zip(cut.trials, stimulus.features["onset"], stimulus.features["other"], trials))
    short = replace(heard, features={"onset": [np.ones((100, 1))]*3})
    with pytest.raises(ValueError, match="trial 0: the stimulus lasts 1.56 s, shorter than the 5.00 s of listener"): align(short, one)
    assert [len(t) for t in align(short, one, None)[1].trials] == [100]*3
    with pytest.raises(ValueError, match="longer than"): align(replace(heard, features={"onset": [np.ones((999, 1))]*3}), one)
    with pytest.raises(ValueError, match="another order"): align(replace(heard, features={"onset": heard.features["onset"][::-1]}), one, .5)
    with pytest.raises(ValueError, match="3 trials, but the stimulus {'onset': 2}"): align(replace(heard, features={"onset": heard.features["onset"][:2]}), one)
    with pytest.raises(ValueError, match="32 Hz, but listener 64 Hz"): align(replace(heard, sample_rate=32.), one)

@pytest.mark.parametrize("before, after", [(512, 64), (500, 64), (64, 512), (44100, 64)])
def test_resampling_keeps_a_slow_sine(before, after):
    sine = lambda rate: np.sin(2*np.pi*3*np.arange(10*rate)/rate)[:, None] + 5
    got, want = resample_trials([sine(before)], before, after)[0], sine(after)
    assert abs(len(got) - len(want)) <= 1 and np.abs(got[after:-after] - want[after:len(got) - after]).max() < .01
    for bad in (0, -64):
        with pytest.raises(ValueError, match="positive"): resample_trials([sine(64)], 64, bad)

def test_impulses_stay_impulses():
    events = np.zeros((640, 1)); events[[10, 100, 639]] = [[1], [2], [3]]
    slow = resample_stimulus(Stimulus({"onset": [events]}, 64, ("onset",)), 32).features["onset"][0]
    assert len(slow) == 320 and slow[[5, 50, 319], 0].tolist() == [1, 2, 3] and slow.sum() == 6

def test_preparation():
    t = np.arange(512*20)/512
    shared = np.random.default_rng(0).standard_normal((len(t), 1))
    raw = Recording([np.stack([np.sin(2*np.pi*4*t), np.sin(2*np.pi*30*t)], 1) + shared]*3, 512, mastoids=[np.hstack([shared, shared])]*3)
    ready, u = prepare(raw, reference="mastoids").trials[0][128:-128], np.arange(128, 1280 - 128)/64
    assert np.abs(ready[:, 0] - np.sin(2*np.pi*4*u)).max() < .05 and np.abs(ready[:, 1]).max() < .01
    assert np.abs(prepare(raw, band=None).trials[0].sum(1)).max() < 1e-9
    for wrong, word in ((dict(reference="nose"), "average, mastoids, none"), (dict(band=(1, 40)), "does not fit"), (dict(band=(8, 1)), "does not fit")):
        with pytest.raises(ValueError, match=word): prepare(raw, **wrong)
    with pytest.raises(ValueError, match="no mastoids"): prepare(replace(raw, mastoids=None), reference="mastoids")
    assert set(REFERENCES) == {"average", "mastoids", "none"}


# files

@pytest.fixture
def people(trials):
    names = ("Fz", "Cz", "Pz", "Oz")
    return [Recording(trials, 64., names, np.random.default_rng(1).standard_normal((4, 3)), [t[:, :2] for t in trials], (2, 3, 1)), Recording(trials, 64., names)]

@pytest.fixture
def heard(trials): return Stimulus({"envelope": [t[:, :1] for t in trials], "onset × pitch": trials}, 64.)

@pytest.mark.parametrize("version", VERSIONS)
def test_cnd_there_and_back(tmp_path, people, heard, version):
    write_cnd(tmp_path, heard, people, version)
    assert all(is_hdf5(path) == (version == "7.3") for path in (tmp_path/"dataCND").iterdir())
    for folder in (tmp_path, tmp_path/"dataCND"):
        for (stimulus, read), wrote in zip(read_cnd(folder), people, strict=True):
            assert stimulus.sample_rate == read.sample_rate == 64 and list(stimulus.features) == list(heard.features)
            assert all(np.array_equal(a, b) for k in heard.features for a, b in zip(stimulus.features[k], heard.features[k], strict=True))
            assert all(np.array_equal(a, b) for a, b in zip(read.trials, wrote.trials, strict=True)) and read.channels == wrote.channels and read.order == wrote.order
            assert np.allclose(read.positions, wrote.positions) if wrote.positions is not None else read.positions is None
            assert all(np.array_equal(a, b) for a, b in zip(read.mastoids or [], wrote.mastoids or [], strict=True))

@pytest.mark.parametrize("version", VERSIONS)
def test_cnd_as_other_programs_write_it(tmp_path, trials, version):
    "neural instead of eeg, padding, no names, no electrodes, a stimulus of its own for each participant, the files' other name."
    for i in (1, 2):
        write_mat(tmp_path/f"dataStim{i}.mat", dict(stim=dict(fs=64., data=cells([[t[10:, :1] for t in trials]]), condNames=cells([["a", "b"]]))), version)
        write_mat(tmp_path/f"dataCND_sub{i}.mat", dict(neural=dict(fs=64., data=cells([trials]), paddingStartSample=10., dataType="EEG", deviceName="", extChan=cells([[]]))), version)
    found = read_cnd(tmp_path)
    assert len(found) == 2 and found[0][0] is not found[1][0]
    for stimulus, read in found: assert list(stimulus.features) == ["feature1"] and np.array_equal(read.trials[2], trials[2][10:]) and read.channels == () and read.positions is None

def test_positions_of_eeglab():
    "In chanlocs x points to the nose and y to the left ear; here x points to the right and y to the nose."
    eeg = dict(fs=64., data=cells([[np.random.default_rng(0).standard_normal((9, 2))]]), chanlocs=[dict(labels="Fz", X=.7, Y=0., Z=.7), dict(labels="T8", X=0., Y=-1., Z=0.)])
    assert np.allclose(cnd_recording(dict(eeg=eeg), Path("x"))[0].positions, [[0, .7, .7], [1, 0, 0]])

def test_what_is_no_cnd_is_told(tmp_path, people, heard):
    with pytest.raises(ValueError, match="no dataStim.mat"): read_cnd(tmp_path)
    write_cnd(tmp_path, heard, people)
    folder = tmp_path/"dataCND"
    write_mat(folder/"dataSub2.mat", dict(eeg=dict(fs=64., data=cells([people[0].trials[:2]]))))
    with pytest.raises(ValueError, match="dataSub2.mat has 2 trials, but dataStim.mat 3"): read_cnd(tmp_path)
    write_mat(folder/"dataSub2.mat", dict(eeg=dict(data=cells([people[0].trials]))))
    with pytest.raises(ValueError, match="no struct eeg or neural with fs"): read_cnd(tmp_path)
    write_mat(folder/"dataSub2.mat", dict(eeg=dict(fs=64., data=people[0].trials[0])))
    with pytest.raises(ValueError, match="must be a cell"): read_cnd(tmp_path)
    for field, wrong, word in (("data", dict(a=1.), "must be a cell"), ("data", cells([["a", "b", "c"]]), "numbers"), ("data", cells([[dict(a=1.)]*3]), "numbers"),
                               ("fs", np.zeros((0, 0)), "fs must be one number"), ("fs", "64", "fs must be one number"), ("fs", np.ones((1, 2)), "fs must be one number")):
        for version in VERSIONS:
            write_mat(folder/"dataSub2.mat", dict(eeg=dict(fs=64., data=cells([people[0].trials])) | {field: wrong}), version)
            with pytest.raises(ValueError, match=f"dataSub2.mat.*{word}"): read_cnd(tmp_path)
    for junk in (b"nothing"*100, b"junk", b""):
        (folder/"dataSub2.mat").write_bytes(junk)
        with pytest.raises(ValueError, match="no Matlab file"): read_cnd(tmp_path)
    write_mat(folder/"dataSub2.mat", {}, "7.3")
    (folder/"dataSub2.mat").write_bytes((folder/"dataSub2.mat").read_bytes()[:600])
    with pytest.raises(ValueError, match="dataSub2.mat is no Matlab file, or damaged"): read_cnd(tmp_path)
    (folder/"dataStim.mat").rename(folder/"dataStim1.mat")
    with pytest.raises(ValueError, match="neither dataStim.mat nor dataStim2.mat"): read_cnd(tmp_path)
    with pytest.raises(ValueError, match="no such file"): read_mat(tmp_path/"none.mat")
    with pytest.raises(ValueError, match="known: 5, 7.3"): write_mat(tmp_path/"x.mat", {}, "4")

def test_matlab_7_3_files_begin_as_matlab_wants(tmp_path):
    write_mat(tmp_path/"x.mat", dict(a=1.), "7.3")
    head = (tmp_path/"x.mat").read_bytes()[:520]
    assert head[:10] == b"MATLAB 7.3" and struct.unpack("<H", head[124:126])[0] == 0x0200 and head[126:128] == b"IM" and head[512:516] == b"\x89HDF"

def written(folder, **fields):
    "A CND data set of three trials, whose second participant has other fields."
    rng = np.random.default_rng(0)
    trials = [rng.standard_normal((100 + 10*i, 3)) for i in range(3)]
    features = [[t[:, :1] for t in trials], [t[:, 1:2] for t in trials]]
    stim = dict(fs=64., names=cells([["env", "onset"]]), data=cells(features)) | fields.pop("stim", {})
    write_mat(folder/"dataStim.mat", dict(stim=stim))
    for i, more in ((1, {}), (2, fields)): write_mat(folder/f"dataSub{i}.mat", dict(eeg=dict(fs=64., data=cells([trials]), chanlocs=[dict(labels=n, X=0., Y=0., Z=1.) for n in ("Fz", "Cz", "Oz")]) | more))
    return trials, features

def test_a_participant_without_a_trial_keeps_the_others(tmp_path):
    trials, features = written(tmp_path)
    empty = np.zeros((0, 0))
    written(tmp_path, data=cells([[trials[0], empty, trials[2]]]), origTrialPosition=np.array([[3., 1., 2.]]), extChan=dict(description="Mastoids", data=cells([[t[:, :2] for t in trials]])))
    with pytest.warns(UserWarning, match="dataSub2.mat: trials 2 are empty and left out"): (whole, first), (left, second) = read_cnd(tmp_path)
    assert len(first.trials) == len(whole.features["env"]) == 3 and first.stimuli == (1, 2, 3) and second.stimuli == (1, 3) and second.order == (3, 2)
    for a, b, m, i in zip(second.trials, left.features["onset"], second.mastoids, (0, 2)): assert np.array_equal(a, trials[i]) and np.array_equal(b, features[1][i]) and np.array_equal(m, trials[i][:, :2])

@pytest.mark.parametrize("value, word", [(np.nan, "Oz"), (3., "Oz")])
def test_bad_channels_go_if_so_wished(tmp_path, value, word):
    trials, _ = written(tmp_path)
    bad = [t.copy() for t in trials]; bad[1][:, 2] = value
    written(tmp_path, data=cells([bad]))
    with pytest.raises(ValueError, match=f"dataSub2.mat: channels {word} are flat or not finite.*drop_bad=True"): read_cnd(tmp_path)
    with pytest.warns(UserWarning, match=f"channels {word}.*left out"): second = read_cnd(tmp_path, drop_bad=True)[1][1]
    assert second.channels == ("Fz", "Cz") and all(np.array_equal(a, b[:, :2]) for a, b in zip(second.trials, trials)) and len(second.positions) == 2
    written(tmp_path, data=cells([[t*np.nan for t in trials]]))
    with pytest.raises(ValueError, match="Fz, Cz, Oz"): read_cnd(tmp_path, drop_bad=True)

def test_names_that_come_twice_and_rows_are_told(tmp_path):
    trials, features = written(tmp_path)
    written(tmp_path, stim=dict(names=cells([["IC", "IC"]])))
    with pytest.warns(UserWarning, match="two features are named 'IC'; the second is called 'IC .2.'"): stimulus, _ = read_cnd(tmp_path)[0]
    assert np.array_equal(stimulus.features["IC"][1], features[0][1]) and np.array_equal(stimulus.features["IC (2)"][1], features[1][1])
    written(tmp_path, stim=dict(data=cells([features[0], [t.T for t in features[1]]])))
    with pytest.warns(UserWarning, match="feature 'onset' is a row in trials 1, 2, 3"): stimulus, _ = read_cnd(tmp_path, ("onset",))[0]
    assert all(np.array_equal(a, b) for a, b in zip(stimulus.features["onset"], features[1])) and stimulus.impulses == ("onset",)

@pytest.mark.parametrize("fields, word", [
    (dict(paddingStartSample=-1.), "Sub2.mat: paddingStartSample"), (dict(paddingStartSample=1e9), "Sub2.mat: paddingStartSample"), (dict(paddingStartSample=np.nan), "Sub2.mat: paddingStartSample"), (dict(paddingStartSample=.5), "Sub2.mat: paddingStartSample"),
    (dict(fs=np.nan), "Sub2.mat: fs"), (dict(fs=0.), "Sub2.mat: fs"), (dict(fs=1e12), "Sub2.mat: fs"), (dict(origTrialPosition=np.array([[1., np.nan, 2.]])), "Sub2.mat: origTrialPosition"), (dict(origTrialPosition=np.array([[1., 1., 2.]])), "Sub2.mat.*order"),
    (dict(chanlocs=[dict(labels="Fz", X=np.nan, Y=0., Z=0.)]*3), "Sub2.mat.*positions"), (dict(chanlocs=[dict(labels="Fz")]), "Sub2.mat.*3 channels, but 1 names"), (dict(extChan=dict(description="Mastoids", data=cells([[np.ones((9, 2))]]))), "Sub2.mat: mastoids of 1 trials"),
    (dict(stim=dict(names=cells([["a", "b", "c"]]))), "Stim.mat has 2 features, but 3 names"), (dict(stim=dict(fs=np.inf)), "Stim.mat: fs"), (dict(stim=dict(data=cells([[np.full((9, 1), np.nan)]*3]), names=cells([["a"]]))), "Stim.mat.*finite")])
def test_impossible_values_of_cnd_name_their_file(tmp_path, fields, word):
    written(tmp_path, **fields)
    with quiet(), pytest.raises(ValueError, match=word): read_cnd(tmp_path)

def test_which_files_are_meant(tmp_path):
    written(tmp_path)
    (tmp_path/"._dataSub3.mat").write_bytes(b"side file of macOS")
    (tmp_path/"pre_dataSub1.mat").write_bytes(b"another copy")
    assert [p.name for _, p in read_cnd(tmp_path)] == ["dataSub1", "dataSub2"]
    for i in (1, 2): (tmp_path/f"dataSub{i}.mat").replace(tmp_path/f"pre_dataSub{i}.mat")
    assert [p.name for _, p in read_cnd(tmp_path)] == ["pre_dataSub1", "pre_dataSub2"]
    (tmp_path/"pre_dataSub2.mat").replace(tmp_path/"ica_dataSub2.mat")
    with pytest.raises(ValueError, match="several kinds .ica_, pre_."): read_cnd(tmp_path)
    (tmp_path/"ica_dataSub2.mat").replace(tmp_path/"pre_dataSub01.mat")
    with pytest.raises(ValueError, match="several files of one number: pre_dataSub01.mat, pre_dataSub1.mat"): read_cnd(tmp_path)

def test_a_file_that_ends_its_reader_ends_nothing_else(tmp_path):
    write_mat(tmp_path/"a.mat", dict(a=np.arange(6.).reshape(2, 3)))
    read = OtherProcess(seconds=60)
    assert np.array_equal(read(tmp_path/"a.mat")[1]["a"], np.arange(6.).reshape(2, 3))
    read.process.kill(); read.process.wait()
    assert read(tmp_path/"a.mat") == (False, "whoever reads it comes to an end") and read(tmp_path/"a.mat")[0]
    read.end()

def damaged(data, rng):
    "Bytes with something wrong: cut short, bits changed, a run of them overwritten or taken out."
    b, at = bytearray(data), int(rng.integers(len(data)))
    kind = rng.integers(4)
    if kind == 0: return bytes(b[:at])
    if kind == 1:
        for k in rng.integers(len(b), size=rng.integers(1, 6)): b[k] ^= 1 << int(rng.integers(8))
    if kind == 2: b[at:at + 8] = rng.bytes(8)
    if kind == 3: del b[at:at + int(rng.integers(1, 40))]
    return bytes(b)

@pytest.mark.parametrize("kind", ["5", "7.3", "npz", "events", "_events.tsv", "_channels.tsv", "_eeg.json"])
def test_damaged_files_end_in_named_errors(tmp_path, people, heard, kind):
    "Or are read, where what was damaged did not count."
    rng = np.random.default_rng(0)
    if kind in VERSIONS:
        write_cnd(tmp_path, heard, people[:1], kind)
        path, read = tmp_path/"dataCND/dataSub1.mat", lambda: read_cnd(tmp_path)
    if kind == "npz": write_npz(path := tmp_path/"a.npz", heard, people[0]); read = lambda: read_npz(path)
    if kind == "events":
        (path := tmp_path/"events.tsv").write_text("onset\tduration\ttrial_type\tvalue\n2\t5\tmusic\t1\n10\t5.5\tmusic\t2\n")
        read = lambda: read_events(path, "music", None)
    if kind[0] == "_":
        pytest.importorskip("mne_bids")
        bids(tmp_path, rng.standard_normal((768, 3)), 64)
        path, read = tmp_path/f"sub-01/eeg/sub-01_task-listen{kind}", lambda: read_bids(tmp_path, "01", "listen", "melody")
    whole = path.read_bytes()
    for _ in range(60):
        path.write_bytes(damaged(whole, rng))
        try:
            with quiet(): read()
        except ValueError as e: assert path.name in str(e) or kind[0] == "_" and f"{tmp_path} holds no EEG of subject '01'" in str(e), e
    if kind == "_channels.tsv":
        for wrong, word in ((b"name\ttype\n", "channels.tsv: no column units"), (b"name\ttype\tunits\nE1\tEEG\n", "channels.tsv: row 2 has 2 values for 3"), (whole + b"\0", "channels.tsv.*no text")):
            path.write_bytes(wrong)
            with quiet(), pytest.raises(ValueError, match=word): read()

def test_npz_there_and_back(tmp_path, people, heard):
    for wrote in people:
        write_npz(tmp_path/"a.npz", heard, wrote)
        stimulus, read = read_npz(tmp_path/"a.npz")
        assert all(np.array_equal(a, b) for a, b in zip(read.trials, wrote.trials, strict=True)) and read.order == wrote.order and read.channels == wrote.channels
        assert np.array_equal(read.positions, wrote.positions) if wrote.positions is not None else read.positions is None
        assert all(np.array_equal(a, b) for k in heard.features for a, b in zip(stimulus.features[k], heard.features[k], strict=True))
    np.savez(tmp_path/"b.npz", a=1)
    with pytest.raises(ValueError, match="not written by write_npz"): read_npz(tmp_path/"b.npz")
    for junk in (b"", b"junk", (tmp_path/"a.npz").read_bytes()[:200]):
        (tmp_path/"b.npz").write_bytes(junk)
        with pytest.raises(ValueError, match="b.npz was not written by write_npz"): read_npz(tmp_path/"b.npz")

def bids(root, data, rate):
    "A small BIDS data set in BrainVision format, written by hand: (samples, channels) in µV, two trials of three seconds."
    folder = root/"sub-01"/"eeg"
    folder.mkdir(parents=True)
    stem, names = "sub-01_task-listen", [f"E{c + 1}" for c in range(data.shape[1])]
    (root/"dataset_description.json").write_text(json.dumps(dict(Name="test", BIDSVersion="1.8.0")))
    (root/"participants.tsv").write_text("participant_id\nsub-01\n")
    (folder/f"{stem}_eeg.eeg").write_bytes(data.astype("<f4").tobytes())
    (folder/f"{stem}_eeg.vmrk").write_text(f"Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\nDataFile={stem}_eeg.eeg\n\n[Marker Infos]\nMk1=New Segment,,1,1,0\n")
    (folder/f"{stem}_eeg.vhdr").write_text("Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n" + f"DataFile={stem}_eeg.eeg\nMarkerFile={stem}_eeg.vmrk\n"
        + f"DataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels={len(names)}\nSamplingInterval={1e6/rate:g}\n\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n"
        + "\n".join(f"Ch{i + 1}={name},,1,µV" for i, name in enumerate(names)) + "\n", encoding="utf-8")
    (folder/f"{stem}_eeg.json").write_text(json.dumps(dict(TaskName="listen", SamplingFrequency=rate, PowerLineFrequency=50, EEGReference="Cz", SoftwareFilters="n/a")))
    (folder/f"{stem}_channels.tsv").write_text("name\ttype\tunits\n" + "".join(f"{n}\tEEG\tµV\n" for n in names))
    (folder/f"{stem}_events.tsv").write_text("onset\tduration\ttrial_type\n1.0\t3.0\tmelody\n5.0\t3.0\tmelody\n9.0\t0.0\tbutton\n")

def change_bids(root, events=None, channels=None):
    "Other events and channels of the same data set."
    stem = root/"sub-01/eeg/sub-01_task-listen"
    if events: Path(f"{stem}_events.tsv").write_text(events)
    if channels: Path(f"{stem}_channels.tsv").write_text(channels)

def test_bids_events(tmp_path):
    pytest.importorskip("mne_bids")
    data = np.random.default_rng(0).standard_normal((640, 3))*20
    bids(tmp_path, data, 64)
    read = lambda event="music", **more: read_bids(tmp_path, "01", "listen", event, **more)
    change_bids(tmp_path, "onset\tduration\ttrial_type\tvalue\tstim_file\n1\t2\tmusic\t1\ta.wav\n3.0078125\t2\tmusic\t2\tb.wav\n")
    with quiet(): both, second = read(), read("music/2")
    assert [t.shape for t in both.trials] == [(128, 3)]*2 and both.stimuli == ("a.wav", "b.wav") and second.stimuli == ("b.wav",)
    assert np.allclose(second.trials[0], data[193:321], atol=1e-3)  # 3.0078125 s is half way between samples 192 and 193
    change_bids(tmp_path, "onset\tduration\ttrial_type\n1\tn/a\tmusic\n5\t0\tmusic\n")
    with quiet(), pytest.raises(ValueError, match="duration="): read()
    with quiet(): assert [len(t) for t in read(duration=2.5).trials] == [160, 160]
    for onsets, told in (((-1, 2), "1 .-1 s"), ((2, 8), "2 .8 s"), ((2, 30), "2 .30 s")):
        change_bids(tmp_path, "onset\tduration\ttrial_type\n" + "".join(f"{o}\t3\tmusic\n" for o in onsets))
        with quiet(), pytest.raises(ValueError, match=f"trials {told}.*not wholly in the recording of 10 s"): read()
        with pytest.warns(UserWarning, match=f"trials {told}.*left out"): left = read(drop_bad=True)
        assert np.allclose(left.trials[0], data[128:320], atol=1e-3) and left.stimuli == ((2,) if onsets[0] < 0 else (1,))
    change_bids(tmp_path, "onset\tduration\ttrial_type\nsoon\t3\tmusic\n")
    with quiet(), pytest.raises(ValueError, match="events.tsv"): read()

def test_bids_bad_channels_are_no_part_of_the_reference(tmp_path):
    pytest.importorskip("mne_bids")
    data = np.random.default_rng(0).standard_normal((640, 3))*[20, 20, 1e5]
    bids(tmp_path, data, 64)
    change_bids(tmp_path, channels="name\ttype\tunits\tstatus\nE1\tEEG\tµV\tgood\nE2\tEEG\tµV\tgood\nE3\tEEG\tµV\tbad\n")
    with pytest.warns(UserWarning, match="calls channels E3 bad"): read = read_bids(tmp_path, "01", "listen", "melody")
    half = (data[64:256, 0] - data[64:256, 1])/2
    assert read.channels == ("E1", "E2") and np.allclose(prepare(read, 64., None).trials[0][:, 0], half, atol=.05)

def test_two_sample_rates_of_one_recording_are_refused(tmp_path):
    pytest.importorskip("mne_bids")
    bids(tmp_path, np.random.default_rng(0).standard_normal((640, 3))*20, 64)
    path = tmp_path/"sub-01/eeg/sub-01_task-listen_eeg.json"
    for said, told in (("SamplingFrequency\": 64.01", None), ("SamplingFrequency\": 65", "eeg.json gives a sample rate of 65 Hz, the recording itself 64 Hz"), ("Samples\": 65", None)):
        path.write_text(whole := path.read_text().replace("SamplingFrequency\": 64", said))
        with quiet():
            if not told: assert len(read_bids(tmp_path, "01", "listen", "melody").trials) == 2
            else:
                with pytest.raises(ValueError, match=told): read_bids(tmp_path, "01", "listen", "melody")
        path.write_text(whole.replace(said, "SamplingFrequency\": 64"))

def test_bids_runs_and_acquisitions(tmp_path):
    pytest.importorskip("mne_bids")
    data = np.random.default_rng(0).standard_normal((640, 3))*20
    bids(tmp_path, data, 64)
    folder = tmp_path/"sub-01/eeg"
    for path in list(folder.iterdir()):
        text = path.read_bytes().replace(b"task-listen", b"task-listen_acq-dry_run-02") if path.suffix in (".vhdr", ".vmrk") else path.read_bytes()
        (folder/path.name.replace("task-listen", "task-listen_acq-dry_run-02")).write_bytes(text); path.unlink()
    with quiet(): assert len(read_bids(tmp_path, "01", "listen", "melody", run="02", acquisition="dry").trials) == 2
    with quiet(), pytest.raises(ValueError, match="subject '01', task 'listen'"): read_bids(tmp_path, "01", "listen", "melody")

def test_bids(tmp_path):
    pytest.importorskip("mne_bids")
    data = np.random.default_rng(0).standard_normal((640, 3))*20
    bids(tmp_path, data, 64)
    with quiet(): read = read_bids(tmp_path, "01", "listen", "melody")
    assert read.sample_rate == 64 and read.channels == ("E1", "E2", "E3") and len(read.trials) == 2 and read.positions is None
    assert np.allclose(read.trials[0], data[64:256], atol=1e-3) and np.allclose(read.trials[1], data[320:512], atol=1e-3)
    with quiet(), pytest.raises(ValueError, match="no event 'song'; there are.*melody"): read_bids(tmp_path, "01", "listen", "song")
    with quiet(), pytest.raises(ValueError, match="subject '02'"): read_bids(tmp_path, "02", "listen", "melody")


# the simulator

def test_noise_is_pink():
    noise = np.concatenate([pink_noise(6400, 8, np.random.default_rng(k)) for k in range(20)], 1)
    power = (np.abs(np.fft.rfft(noise, axis=0))**2).mean(1)
    slope = np.polyfit(np.log(np.arange(20, 2000)), np.log(power[20:2000]), 1)[0]
    assert abs(slope + 1) < .05 and abs(noise.var() - 1) < .15
    white = pink_noise(6400, 8, np.random.default_rng(0), exponent=0)
    assert abs(np.corrcoef(white[1:, 0], white[:-1, 0])[0, 1]) < .05 and abs(white.var() - 1) < .05

def test_the_simulated_brain_answers_as_told():
    samples = 128
    click = Stimulus({"onset": [impulses([.5], None, samples, RATE)]}, RATE)
    bump = BrainResponse(((.25, .04, 1.),), (0., 0., 1.))
    loud, = simulate_eeg(click, {"onset": bump}, snr_db=80, channels=4, spread=0)
    answer = loud.trials[0][:, 0]
    assert abs(answer.argmax()/RATE - .75) < 1/RATE and np.corrcoef(answer, bump.kernel(np.arange(samples)/RATE - .5))[0, 1] > .999
    assert np.argmax(np.abs(loud.trials[0]).max(0)) == np.argmax(head_positions(4) @ [0, 0, 1])

def test_signal_to_noise_ratio_and_seeds():
    stimulus, _ = notes(6)
    told = {"onset": RESPONSES["onset"]}
    clean, noisy = (np.concatenate(simulate_eeg(stimulus, told, snr_db=s)[0].trials) for s in (80, -5))
    assert abs(10*np.log10(clean.var(0).mean()/(noisy - clean).var(0).mean()) + 5) < 1
    many, one = simulate_eeg(stimulus, told, participants=3), simulate_eeg(stimulus, told)
    assert np.array_equal(many[0].trials[0], one[0].trials[0]) and not np.array_equal(many[0].trials[0], many[1].trials[0])
    assert not np.array_equal(one[0].trials[0], simulate_eeg(stimulus, told, seed=1)[0].trials[0])
    with pytest.raises(ValueError, match="no feature envelope; the stimulus has onset, IC"): simulate_eeg(stimulus, RESPONSES)
    for nobody in (dict(participants=0), dict(channels=0)):
        with pytest.raises(ValueError, match="participants and channels"): simulate_eeg(stimulus, told, **nobody)

def test_heads_are_round():
    places = head_positions(64)
    assert np.allclose(np.linalg.norm(places, axis=1), 1) and (places[:, 2] > 0).all() and np.linalg.norm(places[:, None] - places + 9*np.eye(64)[..., None], axis=2).min() > .1
    assert np.allclose(flat_positions(np.array([[0, 0, 9.], [2, 0, 0], [0, 1, 1]])), [[0, 0], [1, 0], [0, .5]])


# the notebook

TOP = Path(__file__).resolve().parent.parent

def run_notebook(folder, **parameters):
    "The notebook through papermill; returns its report."
    import papermill
    with quiet(): papermill.execute_notebook(TOP/"nbs/evaluate_eeg.ipynb", folder/"evaluate_eeg.ipynb", parameters | {"out": str(folder/"out")}, progress_bar=False, cwd=TOP, kernel_name="python3")
    return json.loads((folder/"out/report.json").read_text())

def test_the_notebook_finds_what_the_simulator_put_in(tmp_path):
    report = run_notebook(tmp_path, participants=2, minutes=3., shuffles=9, channels=3, snr_db=-6., levels="0.4", lambdas="1e-2,1,100", folds=3, power_minutes="")
    gain = {r["variant"]: r["gain"] for r in report["rows"]}
    assert gain["IDyOM"] > gain["good"] > gain["poor"] and next(r for r in report["rows"] if r["variant"] == "IDyOM")["p"] == .1
    assert {p.name for p in (tmp_path/"out").iterdir()} >= {"gain.png", "kernels.png", "report.json"}

def test_the_notebook_reads_cnd_and_tables(tmp_path):
    "Surprisal in the data set (IC_true is answered) and in tables (false: of other notes)."
    rng = np.random.default_rng(0)
    stimulus, ic = notes(3, 3)
    wrote = Stimulus({"onset": stimulus.features["onset"], "IC_true": stimulus.features["IC"]}, RATE)
    write_cnd(tmp_path, wrote, simulate_eeg(stimulus, {k: RESPONSES[k] for k in ("onset", "IC")}, -3, 1, 4), "7.3")
    (tmp_path/"tables").mkdir()
    for trial, onsets in enumerate(ic.onsets):
        ends = np.arange(1, round(onsets[-1]*10) + 20)/10
        np.savetxt(tmp_path/f"tables/{trial + 1}.csv", np.stack([ends, rng.gamma(2, 1, len(ends))], 1), delimiter=",", header="Time,IC_0.3", comments="")
    report = run_notebook(tmp_path, data=str(tmp_path), tables=f"false={tmp_path/'tables'}", shuffles=9, lambdas="1e-2,1,100", folds=3, sample_rate=float(RATE))
    rows = {r["variant"]: r for r in report["rows"]}
    assert rows["IC_true"]["p"] == .1 and rows["IC_true"]["gain"] > .02 > rows["false"]["gain"] and rows["false"]["noise_level"] == .3 and report["settings"]["base"] == ["onset"]

def test_the_notebook_reads_bids_and_song_without_notes(tmp_path):
    "Tables of surprisal held over frames (true is answered), for sounds that the events name; one participant lacks a trial."
    pytest.importorskip("mne_bids")
    import soundfile
    rng, rate = np.random.default_rng(0), 64
    ends, n = np.arange(1, 201)/10, 20*rate
    (tmp_path/"stimuli").mkdir()
    surprisal = {f"{c}.wav": np.convolve(rng.standard_normal(209), np.ones(10), "valid") for c in "abcd"}
    for name, ic in surprisal.items():
        soundfile.write(tmp_path/"stimuli"/name, .1*rng.standard_normal(20*22050), 22050)
        for kind, values in (("true", ic), ("false", rng.standard_normal(200))):
            (tmp_path/kind).mkdir(exist_ok=True)
            np.savetxt((tmp_path/kind/name).with_suffix(".csv"), np.stack([ends, values], 1), delimiter=",", header="Time,IC_0.3", comments="")
    for subject, order in (("01", "abcd"), ("02", "dab")):
        held = np.concatenate([np.repeat(surprisal[f"{c}.wav"], 32)[np.arange(n)*5] for c in order])
        data = 20*(np.stack([held, -held, 0*held], 1)/10 + rng.standard_normal((len(held), 3)))
        bids(tmp_path/subject, data, rate)
        change_bids(tmp_path/subject, "onset\tduration\ttrial_type\tstim_file\n" + "".join(f"{20*k}\t20\tsong\t{c}.wav\n" for k, c in enumerate(order)))
        if subject == "02":
            for path in sorted((tmp_path/"02").rglob("sub-01*"), reverse=True): 
                if path.is_file() and path.suffix in (".vhdr", ".vmrk"): path.write_bytes(path.read_bytes().replace(b"sub-01", b"sub-02"))
                path.rename(path.with_name(path.name.replace("sub-01", "sub-02")))
    (tmp_path/"02/sub-02").rename(tmp_path/"01/sub-02")
    report = run_notebook(tmp_path, data=str(tmp_path/"01"), task="listen", event="song", sounds=str(tmp_path/"stimuli"), tables=f"true={tmp_path/'true'},false={tmp_path/'false'}", shuffles=9, lambdas="1,100", folds=3, sample_rate=32., participants=0)
    rows = {r["variant"]: r for r in report["rows"]}
    assert rows["true"]["p"] == .1 and rows["true"]["gain"] > .05 > rows["false"]["gain"] and rows["true"]["participants"] == 2 and report["settings"]["base"] == ["envelope", "flux"]

def test_the_notebook_lets_a_model_hear_what_the_simulated_brain_hears(tmp_path):
    "A surprisal model with random weights: every number is there, and means nothing."
    import torch
    from latentalign import Autoencoder
    from latentalign.codec.autoencoder import fingerprint
    from latentalign.surprisal.listener import SequenceConfig
    from latentalign.surprisal.model import Surprisal, SurprisalConfig
    torch.manual_seed(0)
    encoder = Autoencoder.from_pretrained("m2l")
    sizes = SequenceConfig(channels=encoder.config.latent_channels, width=16, depth=1, heads=1, head_width=16, rotary_width=8, flow_depth=1, expansion=2)
    Surprisal(SurprisalConfig(sizes, "m2l", fingerprint(encoder), pool=1)).attach(encoder).save_pretrained(tmp_path/"model")
    report = run_notebook(tmp_path, models=f"untrained={tmp_path/'model'}", participants=1, minutes=1., shuffles=2, channels=2, levels="0,0.5", lambdas="1e-2,1,100", folds=3, power_minutes="")
    assert [(r["variant"], r["noise_level"]) for r in report["rows"]] == [("IDyOM", None), ("untrained", 0.), ("untrained", .5)] and all(np.isfinite(r["gain"]) for r in report["rows"])
