//! TreeEnsembleClassifier and TreeEnsembleRegressor, over the forest that all tree formats share.
//!
//! Where every leaf adds one weight, and a tree's leaves all add to the same score, the forest adds up by itself. Other
//! ensembles (a random forest of several classes, MIN and MAX) have their leaves numbered: the forest answers with the
//! leaf that each tree reaches, and a table says what it adds.

use std::collections::HashMap;

use super::ml::{Labels, Transform, logistic};
use super::plan::{Args, Op, Outputs, Site};
use super::value::{Buf, Fault, Shape, Value, malformed, unsupported};
use crate::forest::{Children, Forest, Number, Split, Tree};

/// Rows whose leaves are known at a time.
const BLOCK: usize = 64;

/// Leaves of a tree that an `f32` can number.
const MAX_LEAVES: u32 = 1 << 24;

/// A forest's precision, and how its numbers are added up.
trait Real: Number + std::ops::Add<Output = Self> {
    fn of(wide: f64) -> Self;
    fn wide(self) -> f64;
    fn over(self, count: usize) -> Self;
    /// Rows of the input, as they are compared.
    fn rows<'v>(buf: &'v Buf<'_>) -> Result<std::borrow::Cow<'v, [Self]>, Fault>;
    fn above(self) -> Self;
}

impl Real for f32 {
    fn of(wide: f64) -> Self {
        wide as Self
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn over(self, count: usize) -> Self {
        self / count as Self
    }

    fn rows<'v>(buf: &'v Buf<'_>) -> Result<std::borrow::Cow<'v, [Self]>, Fault> {
        buf.to_f32()
    }

    fn above(self) -> Self {
        self.next_up()
    }
}

impl Real for f64 {
    fn of(wide: f64) -> Self {
        wide
    }

    fn wide(self) -> f64 {
        self
    }

    fn over(self, count: usize) -> Self {
        self / count as Self
    }

    fn rows<'v>(buf: &'v Buf<'_>) -> Result<std::borrow::Cow<'v, [Self]>, Fault> {
        match buf {
            Buf::F64(v) => Ok(std::borrow::Cow::Borrowed(&**v)),
            other => Err(malformed(format!("its input is {}, not double", other.type_name()))),
        }
    }

    fn above(self) -> Self {
        self.next_up()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

/// What the leaves add.
enum Votes<T> {
    /// The forest adds it up; whether any tree adds to a score.
    Direct(Vec<bool>),
    /// The entries of each leaf in `weights`, by the leaf's number; the leaves of each tree begin at its own number.
    Table { first: Vec<u32>, ends: Vec<u32>, weights: Vec<(u32, T)> },
}

/// The trees with the way from leaves to scores.
struct Ensemble<T> {
    forest: Forest<T>,
    votes: Votes<T>,
    aggregate: Aggregate,
    trees: usize,
    scores: usize,
    features: usize,
    /// None, or one for each score (of a classifier with two classes, also just one).
    base: Vec<T>,
    transform: Transform,
}

/// The raw arrays of either operator.
struct Arrays {
    prefix: &'static str,
    scores: usize,
}

fn double(site: &Site<'_, '_>) -> Result<bool, Fault> {
    Ok(matches!(site.input(0)?.buf, Buf::F64(_)))
}

/// A list of numbers, as an attribute of its own or as a tensor.
fn numbers(site: &Site<'_, '_>, name: &str) -> Result<Vec<f64>, Fault> {
    match site.node.tensor(&format!("{name}_as_tensor"))?.map(|value| value.buf) {
        None => Ok(site.node.floats(name)?.into_iter().map(f64::from).collect()),
        Some(Buf::F32(v)) => Ok(v.iter().map(|x| f64::from(*x)).collect()),
        Some(Buf::F64(v)) => Ok(v.to_vec()),
        Some(other) => Err(malformed(format!("{name}_as_tensor is {}", other.type_name()))),
    }
}

/// Where the nodes of a tree lie, and which is which.
struct Span {
    start: usize,
    end: usize,
    /// The place of each node by its number, if the numbers are not just counted up.
    places: Option<HashMap<i64, usize>>,
}

impl Span {
    fn place(&self, id: i64) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(&id).copied(),
            None => usize::try_from(id).ok().filter(|at| *at < self.end - self.start),
        }
    }
}

fn spans(tree_ids: &[i64], node_ids: &[i64]) -> Result<(Vec<Span>, HashMap<i64, usize>), Fault> {
    let mut spans = Vec::new();
    let mut by_id = HashMap::new();
    let mut start = 0;
    for own in tree_ids.chunk_by(|a, b| a == b) {
        let end = start + own.len();
        let ids = node_ids.get(start..end).unwrap_or_default();
        let id = own.first().copied().unwrap_or_default();
        if by_id.insert(id, spans.len()).is_some() {
            return Err(malformed(format!("the nodes of tree {id} do not lie together")));
        }
        let counted = ids.iter().copied().eq((0_i64..).take(ids.len()));
        let places = (!counted).then(|| ids.iter().copied().zip(0..).collect::<HashMap<_, _>>());
        if places.as_ref().is_some_and(|places| places.len() != ids.len()) {
            return Err(malformed(format!("tree {id} has two nodes of the same number")));
        }
        spans.push(Span { start, end, places });
        start = end;
    }
    Ok((spans, by_id))
}

impl<T: Real> Ensemble<T> {
    fn new(site: &Site<'_, '_>, arrays: &Arrays) -> Result<Self, Fault> {
        let node = site.node;
        let Arrays { prefix, scores } = *arrays;
        let tree_ids = node.ints("nodes_treeids")?;
        let count = tree_ids.len();
        let exactly = |name: &str, ints: Vec<i64>| match ints.len() == count {
            true => Ok(ints),
            false => Err(malformed(format!("{name} has {} entries for {count} nodes", ints.len()))),
        };
        let node_ids = exactly("nodes_nodeids", node.ints("nodes_nodeids")?)?;
        let features = exactly("nodes_featureids", node.ints("nodes_featureids")?)?;
        let trues = exactly("nodes_truenodeids", node.ints("nodes_truenodeids")?)?;
        let falses = exactly("nodes_falsenodeids", node.ints("nodes_falsenodeids")?)?;
        let missing = node.ints("nodes_missing_value_tracks_true")?;
        let missing = if missing.is_empty() { missing } else { exactly("nodes_missing_value_tracks_true", missing)? };
        let modes = node.texts("nodes_modes")?;
        let values = numbers(site, "nodes_values")?;
        if modes.len() != count || values.len() != count {
            return Err(malformed(format!("{} modes and {} values for {count} nodes", modes.len(), values.len())));
        }
        let (spans, by_id) = spans(&tree_ids, &node_ids)?;
        let trees = spans.len();

        // The weights of each node, in the order of the file.
        let weights = numbers(site, &format!("{prefix}_weights"))?;
        let ids = node.ints(&format!("{prefix}_ids"))?;
        let weight_trees = node.ints(&format!("{prefix}_treeids"))?;
        let weight_nodes = node.ints(&format!("{prefix}_nodeids"))?;
        if [ids.len(), weight_trees.len(), weight_nodes.len()] != [weights.len(); 3] {
            return Err(malformed(format!(
                "the lists of {prefix}es or targets have not {} entries each",
                weights.len()
            )));
        }
        let mut entries: Vec<(usize, u32, f64)> = Vec::with_capacity(weights.len());
        for (((tree, node), id), weight) in weight_trees.iter().zip(&weight_nodes).zip(&ids).zip(&weights) {
            let span = by_id.get(tree).and_then(|at| spans.get(*at));
            let place = span.and_then(|span| Some(span.start + span.place(*node)?));
            let place = place.ok_or_else(|| {
                malformed(format!("a weight belongs to node {node} of tree {tree}, which is not there"))
            })?;
            let id = u32::try_from(*id).ok().filter(|id| (*id as usize) < scores);
            let id =
                id.ok_or_else(|| malformed(format!("a weight of tree {tree} belongs to none of {scores} scores")))?;
            if !weight.is_finite() {
                return Err(malformed(format!("a weight of tree {tree} is {weight}")));
            }
            entries.push((place, id, *weight));
        }
        entries.sort_by_key(|(place, ..)| *place);

        let aggregate = match node.text("aggregate_function", "SUM")? {
            "SUM" => Aggregate::Sum,
            "AVERAGE" => Aggregate::Average,
            "MIN" => Aggregate::Min,
            "MAX" => Aggregate::Max,
            other => return Err(malformed(format!("there is no aggregate_function {other:?}"))),
        };
        let direct =
            groups(&spans, &modes, &entries).filter(|_| matches!(aggregate, Aggregate::Sum | Aggregate::Average));
        let mut table = (Vec::new(), Vec::new(), Vec::new());
        let mut entries = entries.iter().peekable();
        let mut plain = Vec::with_capacity(trees);
        for (at, span) in spans.iter().enumerate() {
            let group = direct.as_ref().map_or(at, |groups| groups.get(at).copied().unwrap_or_default());
            let first = table.1.len();
            table.0.push(u32::try_from(first).map_err(|_| malformed("there are too many leaves"))?);
            let mut nodes = Vec::with_capacity(span.end - span.start);
            for place in span.start..span.end {
                let mode = modes.get(place).copied().unwrap_or_default();
                let mut own = Vec::new();
                while let Some((_, id, weight)) = entries.next_if(|(at, ..)| *at == place) {
                    own.push((*id, *weight));
                }
                if mode == "LEAF" {
                    if direct.is_some() {
                        nodes.push(Split::Leaf(own.first().map_or(0.0, |(_, weight)| *weight)));
                        continue;
                    }
                    let leaf = u32::try_from(table.1.len() - first).ok().filter(|leaf| *leaf < MAX_LEAVES);
                    nodes.push(Split::Leaf(f64::from(leaf.ok_or_else(|| malformed("a tree has too many leaves"))?)));
                    table.2.extend(own.into_iter().map(|(id, weight)| (id, T::of(weight))));
                    table.1.push(u32::try_from(table.2.len()).map_err(|_| malformed("there are too many weights"))?);
                    continue;
                }
                let child = |ids: &[i64]| ids.get(place).and_then(|id| span.place(*id)).unwrap_or(usize::MAX);
                let yes_if_missing = missing.get(place).is_some_and(|flag| *flag == 1);
                let feature =
                    features.get(place).and_then(|feature| usize::try_from(*feature).ok()).unwrap_or(usize::MAX);
                let value = T::of(values.get(place).copied().unwrap_or_default());
                nodes.push(split(mode, feature, value, [child(&trues), child(&falses)], yes_if_missing)?);
            }
            plain.push(Tree { group, nodes, ..Tree::default() });
        }
        let width = site.input(0)?.shape.matrix()?.1;
        let groups = if direct.is_some() { scores } else { trees };
        let forest = Forest::new(width, groups, &plain).map_err(|error| malformed(error.to_string()))?;
        let votes = match direct {
            Some(groups) => Votes::Direct((0..scores).map(|score| groups.contains(&score)).collect()),
            None => Votes::Table { first: table.0, ends: table.1, weights: table.2 },
        };
        let base = numbers(site, "base_values")?.into_iter().map(T::of).collect();
        Ok(Self {
            forest,
            votes,
            aggregate,
            trees: trees.max(1),
            scores,
            features: width,
            base,
            transform: Transform::of(site)?,
        })
    }

    /// The scores of all rows before base values, and whether any leaf has added to each.
    fn scores(&self, rows: &[T], count: usize) -> (Vec<T>, Vec<bool>) {
        let mut scores = vec![T::default(); count * self.scores];
        let (first, ends, weights) = match &self.votes {
            Votes::Direct(scored) => {
                self.forest.add_margins(rows, &mut scores);
                if self.aggregate == Aggregate::Average {
                    scores.iter_mut().for_each(|score| *score = score.over(self.trees));
                }
                return (scores, scored.clone());
            }
            Votes::Table { first, ends, weights } => (first, ends, weights),
        };
        let mut scored = vec![false; count * self.scores];
        let trees = first.len().max(1);
        let rows = rows.chunks(self.features.max(1) * BLOCK);
        let blocks = scores.chunks_mut(self.scores * BLOCK).zip(scored.chunks_mut(self.scores * BLOCK));
        for (rows, (scores, scored)) in rows.zip(blocks) {
            let mut leaves = vec![T::default(); scores.len() / self.scores * trees];
            self.forest.add_margins(rows, &mut leaves);
            let answers = scores.chunks_exact_mut(self.scores).zip(scored.chunks_exact_mut(self.scores));
            for (leaves, (scores, scored)) in leaves.chunks_exact(trees).zip(answers) {
                for (leaf, first) in leaves.iter().zip(first) {
                    let leaf = *first as usize + leaf.wide() as usize;
                    let from = leaf.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
                    let end = ends.get(leaf).copied().unwrap_or(from);
                    for (score, weight) in weights.get(from as usize..end as usize).unwrap_or_default() {
                        let at = *score as usize;
                        if let (Some(score), Some(scored)) = (scores.get_mut(at), scored.get_mut(at)) {
                            let first = !std::mem::replace(scored, true);
                            match self.aggregate {
                                Aggregate::Sum | Aggregate::Average => *score += *weight,
                                Aggregate::Min if first || *weight < *score => *score = *weight,
                                Aggregate::Max if first || *weight > *score => *score = *weight,
                                Aggregate::Min | Aggregate::Max => {}
                            }
                        }
                    }
                }
                if self.aggregate == Aggregate::Average {
                    scores.iter_mut().for_each(|score| *score = score.over(trees));
                }
            }
        }
        (scores, scored)
    }

    fn memory_bytes(&self) -> usize {
        let votes = match &self.votes {
            Votes::Direct(scored) => scored.len(),
            Votes::Table { first, ends, weights } => 4 * (first.len() + ends.len()) + size_of_val(weights.as_slice()),
        };
        size_of::<Self>() + self.forest.memory_bytes() + votes + size_of_val(self.base.as_slice())
    }
}

/// The score that each tree adds to, if every leaf has just one weight, and the leaves of a tree agree.
fn groups(spans: &[Span], modes: &[&str], entries: &[(usize, u32, f64)]) -> Option<Vec<usize>> {
    let mut entries = entries.iter();
    let mut groups = Vec::with_capacity(spans.len());
    for span in spans {
        let mut group = None;
        for place in span.start..span.end {
            if modes.get(place).copied() != Some("LEAF") {
                continue;
            }
            let (at, id, _) = entries.next()?;
            if *at != place || *group.get_or_insert(*id) != *id {
                return None;
            }
        }
        groups.push(group? as usize);
    }
    entries.next().is_none().then_some(groups)
}

/// A split in the words of the forest. NaN makes each comparison false but `!=`, unless the flag says otherwise.
fn split<T: Real>(mode: &str, feature: usize, value: T, [yes, no]: [usize; 2], missing: bool) -> Result<Split, Fault> {
    let yes_left = Children { left: yes, right: no, missing_left: missing };
    let no_left = Children { left: no, right: yes, missing_left: !missing };
    let (threshold, above) = (value.wide(), value.above().wide());
    if value.is_nan() {
        return Err(unsupported("a comparison with NaN"));
    }
    // Nothing lies above infinity: all numbers go to one side.
    let all_left = |children| Split::Among { feature, categories: Vec::new(), children };
    let infinite = threshold == f64::INFINITY;
    Ok(match mode {
        "BRANCH_LT" => Split::Below { feature, threshold, children: yes_left },
        "BRANCH_LEQ" if infinite => all_left(yes_left),
        "BRANCH_LEQ" => Split::Below { feature, threshold: above, children: yes_left },
        "BRANCH_GTE" => Split::Below { feature, threshold, children: no_left },
        "BRANCH_GT" if infinite => all_left(no_left),
        "BRANCH_GT" => Split::Below { feature, threshold: above, children: no_left },
        "BRANCH_EQ" => Split::Equal { feature, value: threshold, children: no_left },
        "BRANCH_NEQ" => {
            Split::Equal { feature, value: threshold, children: Children { missing_left: true, ..yes_left } }
        }
        other => return Err(unsupported(format!("the node mode {other:?}"))),
    })
}

struct Regressor<T>(Ensemble<T>);

pub(super) fn regressor(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let scores = usize::try_from(site.node.int("n_targets", 1)?).ok();
    let most = site.node.ints("target_ids")?.len();
    let scores = scores.filter(|scores| (1..=most.max(1)).contains(scores));
    let scores = scores.ok_or_else(|| malformed(format!("its n_targets does not fit {most} weights")))?;
    let arrays = Arrays { prefix: "target", scores };
    fn checked<T: Real>(ensemble: Ensemble<T>) -> Result<Box<dyn Op>, Fault> {
        let (base, scores) = (ensemble.base.len(), ensemble.scores);
        if base != 0 && base != scores {
            return Err(malformed(format!("{base} base_values for {scores} targets")));
        }
        Ok(Box::new(Regressor(ensemble)))
    }
    if double(site)? {
        checked(Ensemble::<f64>::new(site, &arrays)?)
    } else {
        checked(Ensemble::<f32>::new(site, &arrays)?)
    }
}

impl<T: Real> Op for Regressor<T> {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let ensemble = &self.0;
        let (rows, count) = rows::<T>(args, ensemble.features)?;
        let shape = Shape::within(&[count, ensemble.scores], args.limit)?;
        let (mut scores, _) = ensemble.scores(&rows, count);
        if !ensemble.base.is_empty() {
            scores.iter_mut().zip(ensemble.base.iter().cycle()).for_each(|(score, base)| *score += *base);
        }
        let mut scores: Vec<f32> = scores.into_iter().map(|score| score.wide() as f32).collect();
        if ensemble.scores == 1 {
            scores.iter_mut().for_each(|score| *score = ensemble.transform.apply_alone(*score));
        } else {
            scores.chunks_mut(ensemble.scores).for_each(|row| ensemble.transform.apply(row));
        }
        Ok(Value::f32(shape, scores).into())
    }

    fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }
}

fn rows<'r, T: Real>(args: &'r Args<'_, '_>, features: usize) -> Result<(std::borrow::Cow<'r, [T]>, usize), Fault> {
    let value = args.get(0)?;
    let (count, width) = value.shape.matrix()?;
    if width != features || width == 0 {
        return Err(malformed(format!("{width} columns for {features} features")));
    }
    Ok((T::rows(&value.buf)?, count))
}

struct Classifier<T> {
    ensemble: Ensemble<T>,
    labels: Labels,
    /// Two classes, and all weights are of one of them.
    binary: bool,
    /// No weight is below 0: the one score is a probability.
    positive: bool,
}

pub(super) fn classifier(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let mut labels = Labels::of(site, "classlabels_int64s")?;
    let classes = labels.len();
    let ids = site.node.ints("class_ids")?;
    let binary = classes == 2 && ids.windows(2).all(|pair| matches!(pair, [a, b] if a == b));
    if classes == 2 && !binary && matches!(labels, Labels::Ints(_)) {
        // What ONNX Runtime answers when both classes have weights, whatever the classes are called.
        labels = Labels::Ints(vec![0, 1]);
    }
    let positive = numbers(site, "class_weights")?.iter().all(|weight| *weight >= 0.0);
    if site.node.text("aggregate_function", "SUM")? != "SUM" {
        return Err(unsupported("an aggregate_function of a classifier"));
    }
    let arrays = Arrays { prefix: "class", scores: classes };
    fn checked<T: Real>(
        ensemble: Ensemble<T>,
        labels: Labels,
        binary: bool,
        positive: bool,
    ) -> Result<Box<dyn Op>, Fault> {
        let (base, classes) = (ensemble.base.len(), ensemble.scores);
        if base != 0 && base != classes && !(base == 1 && classes == 2) {
            return Err(malformed(format!("{base} base_values for {classes} classes")));
        }
        if classes == 2 && ensemble.transform == Transform::Probit {
            return Err(unsupported("PROBIT of two classes"));
        }
        Ok(Box::new(Classifier { ensemble, labels, binary, positive }))
    }
    if double(site)? {
        checked(Ensemble::<f64>::new(site, &arrays)?, labels, binary, positive)
    } else {
        checked(Ensemble::<f32>::new(site, &arrays)?, labels, binary, positive)
    }
}

impl<T: Real> Classifier<T> {
    /// Turns a row's two sums into its scores, and answers its class.
    fn two(&self, sums: [T; 2], [first_scored, scored]: [bool; 2]) -> (usize, [f32; 2]) {
        let [mut first, mut second] = sums;
        let transform = self.ensemble.transform;
        // Whether the second class has a score of its own.
        let mut both = scored;
        match (&*self.ensemble.base, scored) {
            ([_, base], true) => {
                second = *base + first;
                first = T::of(-second.wide());
            }
            ([of_first, _], false) => {
                first += *of_first;
                second = T::default();
                both = true;
            }
            ([base], _) => first += *base,
            _ => {}
        }
        let decisive = if scored { second.wide() } else { first.wide() };
        let limit = if self.binary && self.positive { 0.5 } else { 0.0 };
        let class = usize::from(decisive > limit);
        let (first, second) = (first.wide() as f32, second.wide() as f32);
        if both {
            // What has no score of its own is written as 0, whatever was added to it.
            let mut scores = [if first_scored { first } else { 0.0 }, second];
            transform.apply(&mut scores);
            return (class, scores);
        }
        let scores = match transform {
            Transform::Logistic => [logistic(-first), logistic(first)],
            _ if self.binary && self.positive => [1.0 - first, first],
            _ => [-first, first],
        };
        (class, scores)
    }
}

impl<T: Real> Op for Classifier<T> {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let ensemble = &self.ensemble;
        let (rows, count) = rows::<T>(args, ensemble.features)?;
        let width = ensemble.scores;
        let shape = Shape::within(&[count, width], args.limit)?;
        let (sums, scored) = ensemble.scores(&rows, count);
        let mut classes = Vec::with_capacity(count);
        let mut scores = Vec::with_capacity(count * width);
        // The forest says it once for all rows.
        for (sums, scored) in sums.chunks_exact(width).zip(scored.chunks_exact(width).cycle()) {
            if let (&[first, second], &[first_scored, scored]) = (sums, scored) {
                let (class, two) = self.two([first, second], [first_scored, scored]);
                classes.push(class);
                scores.extend(two);
                continue;
            }
            let from = scores.len();
            let mut best: Option<(usize, T)> = None;
            for (at, (sum, scored)) in sums.iter().zip(scored).enumerate() {
                let base = ensemble.base.get(at).copied();
                let sum = *sum + base.unwrap_or_default();
                if (*scored || base.is_some()) && best.is_none_or(|(_, most)| sum > most) {
                    best = Some((at, sum));
                }
                scores.push(sum.wide() as f32);
            }
            classes.push(best.map_or(0, |(at, _)| at));
            ensemble.transform.apply(scores.get_mut(from..).unwrap_or_default());
        }
        Ok(Outputs::Two(self.labels.pick(&classes)?, Value::f32(shape, scores)))
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self) + self.ensemble.memory_bytes() + self.labels.memory_bytes()
    }
}
