"scikit-learn's calibration curve, and the formulas of the papers in NumPy"
import numpy as np
import pytest
import torch

from losslab.calibration import binary_reliability, calibration_error, fit_temperature, reliability

curve = pytest.importorskip('sklearn.calibration', reason='scikit-learn is in the dev extra').calibration_curve


def close(ours, theirs): torch.testing.assert_close(torch.as_tensor(ours).double(), torch.as_tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize('binning', [('width', 'uniform'), ('mass', 'quantile')])
@pytest.mark.parametrize('n_bins', [1, 2, 5, 8, 15, 64])
def test_calibration_curve(n_bins, binning):
    "The same points for bins of equal width and of equal mass, with ties in the scores and empty bins"
    for p in torch.rand(500).double()**3, torch.randint(257, (500,)).double()/256, torch.full((20,), .25).double():
        y = (torch.rand(len(p)) < p).long()
        y[:2] = torch.tensor([0, 1])
        ours = binary_reliability(p, y, n_bins=n_bins, binning=binning[0], from_logits=False)
        true, said = curve(y, p, n_bins=n_bins, strategy=binning[1])
        some = ours.count > 0
        close(ours.frequency[some], true)
        close(ours.confidence[some], said)


def paper(p, y, m):
    "Expected and maximum error of the answer, as Guo et al. write them"
    conf, right = p.max(1), (p.argmax(1) == y).astype(float)
    gaps, sizes = [], []
    for k in range(m):
        inside = (conf > k/m) & (conf <= (k + 1)/m)
        if inside.any():
            gaps.append(abs(right[inside].mean() - conf[inside].mean()))
            sizes.append(inside.mean())
    return float(np.dot(gaps, sizes)), max(gaps), float(np.sqrt(np.dot(np.square(gaps), sizes)))


def classwise(p, y, m):
    "Static calibration error of Nixon et al.: the same for each class, averaged"
    errors = []
    for k in range(p.shape[1]):
        place = np.clip(np.ceil(p[:, k]*m) - 1, 0, m - 1)
        errors.append(sum(abs(((y == k) - p[:, k])[place == b].sum()) for b in range(m))/len(y))
    return float(np.mean(errors))


@pytest.mark.parametrize('m', [1, 10, 15, 100])
def test_papers(m):
    "Expected, maximum, root mean square, and class by class"
    z, y = 2*torch.randn(700, 5, dtype=torch.double), torch.randint(5, (700,))
    p = z.softmax(1).numpy()
    for norm, want in zip(('expected', 'maximum', 'rms'), paper(p, y.numpy(), m), strict=True): close(calibration_error(z, y, norm, n_bins=m), want)
    close(calibration_error(z, y, n_bins=m, per_class=True), classwise(p, y.numpy(), m))


def test_temperature_of_a_logistic_regression():
    "One coefficient without intercept and without penalty is 1/T of two columns"
    linear = pytest.importorskip('sklearn.linear_model')
    z = 4*torch.randn(400, dtype=torch.double)
    y = (torch.rand(400) < (z/3).sigmoid()).long()
    fit = linear.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000).fit(z[:, None], y)
    t = fit_temperature(torch.stack([0*z, z], 1), y)
    torch.testing.assert_close(1/t, torch.tensor(fit.coef_[0, 0]), rtol=1e-6, atol=0)
    before, after = (reliability(torch.stack([0*z, o], 1), y).expected for o in (z, z/t))
    assert after < before
