//! SVMClassifier and SVMRegressor with support vectors, as libsvm trains them.

use super::ml::{Labels, Transform, logistic};
use super::plan::{Args, Op, Outputs, Site};
use super::value::{Fault, Shape, Value, malformed, unsupported};

#[derive(Debug, Clone, Copy)]
enum Kernel {
    Linear,
    Poly,
    Rbf,
    Sigmoid,
}

/// The support vectors and the function that compares a row to them.
struct Machine {
    kernel: Kernel,
    gamma: f32,
    coef0: f32,
    degree: f32,
    /// Row-major.
    vectors: Vec<f32>,
    features: usize,
    count: usize,
    rho: Vec<f32>,
    coefficients: Vec<f32>,
}

impl Machine {
    fn new(site: &Site<'_, '_>, count: usize) -> Result<Self, Fault> {
        let node = site.node;
        let kernel = match node.text("kernel_type", "LINEAR")? {
            "LINEAR" => Kernel::Linear,
            "POLY" => Kernel::Poly,
            "RBF" => Kernel::Rbf,
            "SIGMOID" => Kernel::Sigmoid,
            other => return Err(malformed(format!("there is no kernel_type {other:?}"))),
        };
        let (gamma, coef0, degree) = match *node.floats("kernel_params")? {
            [] => (0.0, 0.0, 0.0),
            [gamma, coef0, degree] => (gamma, coef0, degree),
            _ => return Err(malformed("kernel_params are not three")),
        };
        let features = site.input(0)?.shape.matrix()?.1;
        let vectors = node.floats("support_vectors")?;
        if count == 0 || features == 0 {
            return Err(unsupported("a machine without support vectors"));
        }
        if vectors.len() != features.saturating_mul(count) {
            return Err(malformed(format!("{count} vectors of {features} features have {} numbers", vectors.len())));
        }
        let (rho, coefficients) = (node.floats("rho")?, node.floats("coefficients")?);
        Ok(Self { kernel, gamma, coef0, degree, vectors, features, count, rho, coefficients })
    }

    /// How alike a row is to each vector.
    fn kernels(&self, row: &[f32]) -> Vec<f32> {
        let kernel = |vector: &[f32]| {
            let dot = || row.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
            match self.kernel {
                Kernel::Linear => dot(),
                Kernel::Poly => (self.gamma * dot() + self.coef0).powf(self.degree),
                Kernel::Sigmoid => (self.gamma * dot() + self.coef0).tanh(),
                Kernel::Rbf => {
                    let distance = row.iter().zip(vector).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
                    (-self.gamma * distance).exp()
                }
            }
        };
        self.vectors.chunks_exact(self.features).map(kernel).collect()
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self.vectors.as_slice())
            + size_of_val(self.coefficients.as_slice())
            + size_of_val(self.rho.as_slice())
    }
}

struct Regressor {
    machine: Machine,
    one_class: bool,
}

pub(super) fn regressor(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let count = usize::try_from(site.node.int("n_supports", 0)?).unwrap_or(usize::MAX);
    let machine = Machine::new(site, count)?;
    if machine.coefficients.len() != count || machine.rho.len() != 1 {
        return Err(malformed(format!("{} coefficients for {count} vectors", machine.coefficients.len())));
    }
    if Transform::of(site)? != Transform::None {
        return Err(unsupported("a post_transform of an SVMRegressor"));
    }
    Ok(Box::new(Regressor { machine, one_class: site.node.int("one_class", 0)? != 0 }))
}

impl Op for Regressor {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let machine = &self.machine;
        let value = args.get(0)?;
        let (count, width) = value.shape.matrix()?;
        if width != machine.features {
            return Err(malformed(format!("{width} columns for {} features", machine.features)));
        }
        let answer = |row: &[f32]| {
            let weighted = machine.kernels(row).into_iter().zip(&machine.coefficients);
            let sum: f64 = weighted.map(|(kernel, weight)| f64::from(kernel) * f64::from(*weight)).sum();
            let sum = sum as f32 + machine.rho.first().copied().unwrap_or_default();
            match self.one_class {
                true if sum > 0.0 => 1.0,
                true => -1.0,
                false => sum,
            }
        };
        let sums = value.buf.to_f32()?.chunks_exact(width).map(answer).collect();
        Ok(Value::f32(Shape::new(&[count, 1])?, sums).into())
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self) + self.machine.memory_bytes()
    }
}

struct Classifier {
    machine: Machine,
    labels: Labels,
    /// The vectors of each class: from, and how many.
    spans: Vec<(usize, usize)>,
    /// Platt's parameters for each pair of classes; without them the scores are the pairs' own.
    platt: Vec<(f32, f32)>,
}

pub(super) fn classifier(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let node = site.node;
    let labels = Labels::of(site, "classlabels_ints")?;
    let mut spans = Vec::new();
    let mut count = 0_usize;
    for own in node.ints("vectors_per_class")? {
        let own = usize::try_from(own).ok().filter(|own| *own <= 1 << 32);
        let own = own.ok_or_else(|| malformed("vectors_per_class has an impossible count"))?;
        spans.push((count, own));
        count += own;
    }
    let machine = Machine::new(site, count)?;
    let classes = labels.len();
    let pairs = classes * (classes - 1) / 2;
    let (a, b) = (node.floats("prob_a")?, node.floats("prob_b")?);
    let platt = a.len() == b.len() && (a.is_empty() || a.len() == pairs);
    let coefficients = count.saturating_mul(classes - 1);
    if spans.len() != classes || machine.rho.len() != pairs || !platt || machine.coefficients.len() != coefficients {
        return Err(malformed(format!("its lists do not fit {classes} classes and {count} vectors")));
    }
    if Transform::of(site)? != Transform::None {
        return Err(unsupported("a post_transform of an SVMClassifier"));
    }
    Ok(Box::new(Classifier { machine, labels, spans, platt: a.into_iter().zip(b).collect() }))
}

impl Classifier {
    /// The decision of each pair of classes, and the class with the most of them.
    fn decide(&self, row: &[f32]) -> (Vec<f32>, usize) {
        let machine = &self.machine;
        let kernels = machine.kernels(row);
        let mut decisions = Vec::with_capacity(machine.rho.len());
        let mut votes = vec![0_u32; self.spans.len()];
        let part = |line: usize, (from, count): (usize, usize)| {
            let weights = machine.coefficients.get(line * machine.count + from..).unwrap_or_default();
            let kernels = kernels.get(from..from + count).unwrap_or_default();
            kernels.iter().zip(weights).map(|(kernel, weight)| f64::from(kernel * weight)).sum::<f64>()
        };
        let mut rho = machine.rho.iter();
        for (i, first) in self.spans.iter().enumerate() {
            for (j, second) in self.spans.iter().enumerate().skip(i + 1) {
                let rho = rho.next().copied().unwrap_or_default();
                let sum = part(j - 1, *first) + part(i, *second) + f64::from(rho);
                decisions.push(sum as f32);
                if let Some(vote) = votes.get_mut(if sum > 0.0 { i } else { j }) {
                    *vote += 1;
                }
            }
        }
        let most = votes.iter().max().copied().unwrap_or_default();
        (decisions, votes.iter().position(|vote| *vote == most).unwrap_or_default())
    }

    /// Pairwise coupling, the second method of Wu, Lin and Weng: <https://www.csie.ntu.edu.tw/~cjlin/papers/svmprob/svmprob.pdf>
    fn couple(&self, decisions: &[f32]) -> Vec<f32> {
        let classes = self.spans.len();
        let mut wins = vec![vec![0.0_f32; classes]; classes];
        let mut pairs = decisions.iter().zip(&self.platt);
        let all = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
        for (i, j) in all {
            let Some((decision, (a, b))) = pairs.next() else { continue };
            let p = (1.0 - logistic(decision * a + b)).clamp(1e-7, 1.0 - 1e-7);
            wins[i][j] = p;
            wins[j][i] = 1.0 - p;
        }
        let mut q = vec![vec![0.0_f32; classes]; classes];
        for i in 0..classes {
            for j in (0..classes).filter(|j| *j != i) {
                q[i][i] += wins[j][i] * wins[j][i];
                q[i][j] = -wins[j][i] * wins[i][j];
            }
        }
        let mut p = vec![1.0 / classes as f32; classes];
        let mut qp = vec![0.0_f32; classes];
        for _ in 0..100 {
            let mut pqp = 0.0;
            for ((line, own), p_own) in q.iter().zip(&mut qp).zip(&p) {
                *own = line.iter().zip(&p).fold(0.0, |sum, (q, p)| sum + q * p);
                pqp += p_own * *own;
            }
            let error = qp.iter().fold(0.0_f32, |error, own| error.max((own - pqp).abs()));
            if error < 0.005 / classes as f32 {
                break;
            }
            for i in 0..classes {
                let diff = (-qp[i] + pqp) / q[i][i];
                p[i] += diff;
                pqp = (pqp + diff * (diff * q[i][i] + 2.0 * qp[i])) / (1.0 + diff) / (1.0 + diff);
                for ((own, q), p) in qp.iter_mut().zip(&q[i]).zip(&mut p) {
                    *own = (*own + diff * q) / (1.0 + diff);
                    *p /= 1.0 + diff;
                }
            }
        }
        p
    }
}

impl Op for Classifier {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let (count, width) = value.shape.matrix()?;
        if width != self.machine.features {
            return Err(malformed(format!("{width} columns for {} features", self.machine.features)));
        }
        let mut classes = Vec::with_capacity(count);
        let mut scores = Vec::new();
        for row in value.buf.to_f32()?.chunks_exact(width) {
            let (decisions, class) = self.decide(row);
            classes.push(class);
            match *decisions {
                _ if !self.platt.is_empty() => scores.extend(self.couple(&decisions)),
                [alone] => scores.extend([-alone, alone]),
                _ => scores.extend(decisions),
            }
        }
        let columns = match self.spans.len() {
            classes if !self.platt.is_empty() => classes,
            2 => 2,
            classes => classes * (classes - 1) / 2,
        };
        Ok(Outputs::Two(self.labels.pick(&classes)?, Value::f32(Shape::new(&[count, columns])?, scores)))
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self) + self.machine.memory_bytes() + self.labels.memory_bytes()
    }
}
