//! Decision trees in the one form that every tree format is turned into, and their evaluation.
//!
//! ```text
//!   xgboost ──┐                        ┌── the plain form: a few paths at a time
//!   …         ├──► [Tree] ──► Forest ──┤
//!   …       ──┘   untrusted   checked  └── lanes: comparisons of bytes, with vectors or without (`Path`)
//! ```
//!
//! A parser describes its trees as a list of [`Tree`]s and trusts nothing; [`Forest::new`] proves them to be trees and
//! lays them out, in FP32 or FP64: the precision in which inputs are compared and leaves are added up. A split goes left
//! where `x < threshold`, which other comparisons can be written as: `x <= t` is `x < t.next_up()` in that precision, `>`
//! swaps the children.

#[cfg(target_arch = "x86_64")]
mod block;
mod lanes;
mod lay;
#[cfg(target_arch = "x86_64")]
mod simd;
mod walk;

use std::fmt;

use lanes::Lanes;

/// Deeper trees come from no trainer; the limit bounds what one row may cost.
const MAX_DEPTH: u32 = 2048;

/// The first category that an `f32` cannot tell from the next one.
const CATEGORY_END: u32 = 1 << 24;

/// How many rows go down a tree before the next tree has its turn: the tree stays in the first-level cache, and so do
/// the rows' features.
const BLOCK: usize = 64;

/// How many paths are gone down at the same time: each step waits for memory, and for none of the others.
const PATHS: usize = 8;

/// A tree as a parser read it: nothing is checked yet. The root is node 0.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    /// Which margin the leaves add to.
    pub(crate) group: usize,
    /// The nodes in any order.
    pub(crate) nodes: Vec<Split>,
    /// How many nodes no path leads to: formats that prune leave such nodes behind, and say how many.
    pub(crate) unreachable: usize,
}

/// One node as a parser read it.
#[derive(Debug, Clone)]
pub(crate) enum Split {
    /// The end of a path, and what it adds to the margin.
    Leaf(f64),
    /// `x < threshold` goes left.
    Below { feature: usize, threshold: f64, children: Children },
    /// `x == value` goes right, and every other number goes left.
    Equal { feature: usize, value: f64, children: Children },
    /// A category in the list goes right, and every other number goes left.
    Among { feature: usize, categories: Vec<u32>, children: Children },
}

/// Where a split leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Children {
    pub(crate) left: usize,
    pub(crate) right: usize,
    /// Whether a missing value (NaN) goes left.
    pub(crate) missing_left: bool,
}

/// Why a list of trees is no forest: the tree, the node and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    tree: usize,
    node: usize,
    detail: String,
}

impl Error {
    /// What is wrong, for whoever says himself with which tree.
    pub(crate) fn in_tree(&self) -> String {
        format!("node {}: {}", self.node, self.detail)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tree {}, node {}: {}", self.tree, self.node, self.detail)
    }
}

/// The precision of a forest: FP32 or FP64.
pub(crate) trait Number:
    Copy + PartialOrd + std::ops::AddAssign + fmt::Debug + Default + Send + Sync + 'static
{
    const NAN: Self;
    /// The same number, if this precision has it.
    fn exactly(wide: f64) -> Option<Self>;
    fn is_nan(self) -> bool;
    /// The order of numbers, none of which is NaN: -0 comes before 0.
    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering;
    /// The number whose bits are an index, and back.
    fn of_index(index: u32) -> Self;
    fn index(self) -> u32;
    /// What stands before the point, where it is the code of a category.
    fn category(self) -> Option<u32>;
    /// The same numbers, if they are FP32, or if they are FP64.
    fn as_f32(_numbers: &[Self]) -> Option<&[f32]> {
        None
    }
    fn as_f64(_numbers: &[Self]) -> Option<&[f64]> {
        None
    }
    fn as_f32_mut(_numbers: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    fn as_f64_mut(_numbers: &mut [Self]) -> Option<&mut [f64]> {
        None
    }
}

impl Number for f32 {
    const NAN: Self = Self::NAN;

    fn exactly(wide: f64) -> Option<Self> {
        let narrow = wide as Self;
        (f64::from(narrow) == wide || wide.is_nan()).then_some(narrow)
    }

    fn is_nan(self) -> bool {
        self.is_nan()
    }

    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.total_cmp(other)
    }

    fn of_index(index: u32) -> Self {
        Self::from_bits(index)
    }

    fn index(self) -> u32 {
        self.to_bits()
    }

    fn category(self) -> Option<u32> {
        // Fractions are cut off, as the trainers do it.
        (0.0..CATEGORY_END as Self).contains(&self).then_some(self as u32)
    }

    fn as_f32(numbers: &[Self]) -> Option<&[Self]> {
        Some(numbers)
    }

    fn as_f32_mut(numbers: &mut [Self]) -> Option<&mut [Self]> {
        Some(numbers)
    }
}

impl Number for f64 {
    const NAN: Self = Self::NAN;

    fn exactly(wide: f64) -> Option<Self> {
        Some(wide)
    }

    fn is_nan(self) -> bool {
        self.is_nan()
    }

    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.total_cmp(other)
    }

    fn of_index(index: u32) -> Self {
        Self::from_bits(u64::from(index))
    }

    fn index(self) -> u32 {
        // Only what `of_index` made.
        self.to_bits() as u32
    }

    fn category(self) -> Option<u32> {
        (0.0..Self::from(CATEGORY_END)).contains(&self).then_some(self as u32)
    }

    fn as_f64(numbers: &[Self]) -> Option<&[Self]> {
        Some(numbers)
    }

    fn as_f64_mut(numbers: &mut [Self]) -> Option<&mut [Self]> {
        Some(numbers)
    }
}

/// Trees that are proved to be trees.
#[derive(Debug)]
pub(crate) struct Forest<T> {
    features: usize,
    groups: usize,
    /// All trees one after the other; the two children of a split stand side by side, after their parent. Empty, if every
    /// tree is in `lanes`.
    nodes: Vec<Node<T>>,
    /// The root of each tree with the margin it adds to, in the order of the additions.
    roots: Vec<Root>,
    /// The categories of all categorical splits, as bitsets or as sorted lists.
    words: Vec<u32>,
    /// Where the categories of each categorical split lie in `words`.
    sets: Vec<Set>,
    /// The faster form of the trees that fit, if it pays.
    lanes: Option<Lanes<T>>,
    path: Path,
}

/// How a forest is gone through. All ways give the same bits; a machine takes the first that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Lanes with the vectors of AVX-512, and its permutations of bytes.
    Avx512,
    /// Lanes with the vectors of AVX2.
    Avx2,
    /// Lanes without vectors, a row at a time, if the trees are full.
    Bytes,
    /// Without lanes.
    Plain,
}

impl Path {
    pub(crate) const ALL: [Self; 4] = [Self::Avx512, Self::Avx2, Self::Bytes, Self::Plain];

    /// Whether this machine has it.
    pub(crate) fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => simd::avx512(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => simd::avx2(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Bytes | Self::Plain => true,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Node<T> {
    /// The feature, with [`MISSING_LEFT`] and the kind of the split: [`CATEGORICAL`], [`EQUAL`] or neither.
    split: u32,
    /// The left child, the right one follows; 0, which is a root and no child, makes this a leaf.
    left: u32,
    /// The threshold, the leaf's value, or the bits of an index into `sets`.
    value: T,
}

const MISSING_LEFT: u32 = 1 << 31;
const CATEGORICAL: u32 = 1 << 30;
const EQUAL: u32 = 1 << 29;
const FEATURE: u32 = EQUAL - 1;

#[derive(Debug, Clone, Copy)]
struct Root {
    node: u32,
    group: u32,
}

#[derive(Debug, Clone, Copy)]
struct Set {
    from: u32,
    end: u32,
    /// A sorted list; a bitset otherwise.
    listed: bool,
}

/// Makes a forest, tree after tree: what a parser holds of one tree can be used again for the next.
pub(crate) struct Builder<T> {
    forest: Forest<T>,
    /// Which nodes of the tree have been reached.
    seen: Vec<bool>,
    /// Where a node was, where it goes, and how deep it lies.
    open: Vec<(usize, u32, u32)>,
}

impl<T: Number> Builder<T> {
    pub(crate) fn new(features: usize, groups: usize) -> Self {
        let forest = Forest {
            features,
            groups,
            nodes: Vec::new(),
            roots: Vec::new(),
            words: Vec::new(),
            sets: Vec::new(),
            lanes: None,
            path: Path::Plain,
        };
        Self { forest, seen: Vec::new(), open: Vec::new() }
    }

    /// Adds an output.
    pub(crate) fn add_group(&mut self) {
        self.forest.groups += 1;
    }

    /// Adds a tree, and proves that it is one: indices in range, every node reached by one path (or declared unreachable),
    /// leaves and thresholds that are numbers, a bounded depth.
    pub(crate) fn push(&mut self, tree: &Tree) -> Result<(), Error> {
        let at = self.forest.roots.len();
        self.try_push(tree).map_err(|(node, detail)| Error { tree: at, node, detail })
    }

    fn try_push(&mut self, tree: &Tree) -> Result<(), (usize, String)> {
        if tree.group >= self.forest.groups {
            return Err((0, format!("it adds to output {} of {}", tree.group, self.forest.groups)));
        }
        let group = u32::try_from(tree.group).map_err(|_| (0, "there are too many outputs".to_owned()))?;
        let root = self.reserve(1).map_err(|detail| (0, detail))?;
        self.forest.roots.push(Root { node: root, group });

        self.seen.clear();
        self.seen.resize(tree.nodes.len(), false);
        let mut reached = 0;
        self.open.clear();
        self.open.push((0, root, 0));
        while let Some((from, to, depth)) = self.open.pop() {
            let (Some(node), Some(seen)) = (tree.nodes.get(from), self.seen.get_mut(from)) else {
                return Err((from, format!("there is no such node, there are {}", tree.nodes.len())));
            };
            if std::mem::replace(seen, true) {
                return Err((from, "two paths lead to it, or a cycle".to_owned()));
            }
            if depth > MAX_DEPTH {
                return Err((from, format!("it lies deeper than {MAX_DEPTH}")));
            }
            reached += 1;
            let (node, children) = self.lay(node).map_err(|detail| (from, detail))?;
            if let Some(children) = children {
                self.open.push((children.right, node.left + 1, depth + 1));
                self.open.push((children.left, node.left, depth + 1));
            }
            if let Some(place) = self.forest.nodes.get_mut(to as usize) {
                *place = node;
            }
        }
        let missed = tree.nodes.len() - reached;
        if missed != tree.unreachable {
            return Err((0, format!("no path leads to {missed} nodes, and {} are said to be so", tree.unreachable)));
        }
        Ok(())
    }

    /// Makes the small form of a node; its children get their places, and are filled later.
    fn lay(&mut self, split: &Split) -> Result<(Node<T>, Option<Children>), String> {
        let exactly = |wide: f64| T::exactly(wide).ok_or_else(|| format!("{wide} is too precise for this forest"));
        let (feature, kind, value, children) = match split {
            Split::Leaf(value) if !value.is_finite() => return Err(format!("its leaf is {value}")),
            Split::Leaf(value) => return Ok((Node { split: 0, left: 0, value: exactly(*value)? }, None)),
            // An infinite threshold is a split all the same; NaN would be none.
            Split::Below { threshold, .. } if threshold.is_nan() => return Err("its threshold is NaN".to_owned()),
            Split::Equal { value, .. } if value.is_nan() => return Err("it compares with NaN".to_owned()),
            Split::Below { feature, threshold, children } => (*feature, 0, exactly(*threshold)?, *children),
            Split::Equal { feature, value, children } => (*feature, EQUAL, exactly(*value)?, *children),
            Split::Among { feature, categories, children } => {
                (*feature, CATEGORICAL, T::of_index(self.push_set(categories)?), *children)
            }
        };
        if feature >= self.forest.features {
            return Err(format!("it splits on feature {feature} of {}", self.forest.features));
        }
        let feature = u32::try_from(feature).ok().filter(|feature| *feature <= FEATURE);
        let feature = feature.ok_or("there are too many features")?;
        let missing = if children.missing_left { MISSING_LEFT } else { 0 };
        let left = self.reserve(2)?;
        Ok((Node { split: feature | missing | kind, left, value }, Some(children)))
    }

    fn reserve(&mut self, nodes: usize) -> Result<u32, String> {
        let first = self.forest.nodes.len();
        let end = first.checked_add(nodes).filter(|end| u32::try_from(*end).is_ok());
        let end = end.ok_or("there are too many nodes")?;
        self.forest.nodes.resize(end, Node { split: 0, left: 0, value: T::default() });
        u32::try_from(first).map_err(|_| "there are too many nodes".to_owned())
    }

    fn push_set(&mut self, categories: &[u32]) -> Result<u32, String> {
        if let Some(category) = categories.iter().find(|category| **category >= CATEGORY_END) {
            return Err(format!("its category {category} is not below {CATEGORY_END}"));
        }
        let from = self.forest.words.len();
        let bits = categories.iter().max().map_or(0, |max| *max as usize / 32 + 1);
        // A few high categories of a short file must not unfold into a long bitset.
        let listed = bits > 4 * categories.len();
        if listed {
            self.forest.words.extend(categories);
            self.forest.words[from..].sort_unstable();
        } else {
            self.forest.words.resize(from + bits, 0);
            for category in categories {
                self.forest.words[from + *category as usize / 32] |= 1 << (category % 32);
            }
        }
        let narrow = |n: usize| u32::try_from(n).map_err(|_| "there are too many categories".to_owned());
        self.forest.sets.push(Set { from: narrow(from)?, end: narrow(self.forest.words.len())?, listed });
        narrow(self.forest.sets.len() - 1)
    }

    /// The forest, for the fastest path of this machine.
    pub(crate) fn build(self) -> Forest<T> {
        self.finish(None)
    }

    fn finish(self, path: Option<Path>) -> Forest<T> {
        let mut forest = self.forest;
        forest.add_lanes(path);
        forest.nodes.shrink_to_fit();
        forest.roots.shrink_to_fit();
        forest
    }
}

impl<T: Number> Forest<T> {
    /// Proves that every list of nodes is a tree, as [`Builder::push`] does it, and lays them out flat.
    pub(crate) fn new(features: usize, groups: usize, trees: &[Tree]) -> Result<Self, Error> {
        Self::with(features, groups, trees, None)
    }

    /// The same for a path that the machine has, even where it does not pay; for the fastest otherwise.
    pub(crate) fn with(features: usize, groups: usize, trees: &[Tree], path: Option<Path>) -> Result<Self, Error> {
        let mut builder = Builder::new(features, groups);
        builder.forest.nodes.reserve_exact(trees.iter().map(|tree| tree.nodes.len()).sum());
        builder.forest.roots.reserve_exact(trees.len());
        for tree in trees {
            builder.push(tree)?;
        }
        Ok(builder.finish(path))
    }

    fn add_lanes(&mut self, path: Option<Path>) {
        let always = path.is_some();
        let path = path.filter(|path| path.available()).or_else(|| Path::ALL.into_iter().find(|path| path.available()));
        self.path = path.unwrap_or(Path::Plain);
        if self.path == Path::Plain {
            return;
        }
        self.lanes =
            Lanes::new(self, always).filter(|lanes| self.path != Path::Bytes || (lanes.narrow() && lanes.full));
        if self.lanes.as_ref().is_some_and(|lanes| lanes.narrow() && lanes.trees.len() == self.roots.len()) {
            self.nodes = Vec::new();
            self.words = Vec::new();
            self.sets = Vec::new();
        }
    }

    /// How many margins a row gets.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// Adds each row's leaves to its margins, in the forest's precision and in the order of the trees, as the trainers do it.
    ///
    /// `rows` is row-major with `features` columns, `margins` row-major with `groups`.
    pub(crate) fn add_margins(&self, rows: &[T], margins: &mut [T]) {
        if let Some(lanes) = &self.lanes {
            return match self.path {
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 | Path::Avx2 => {
                    simd::add_margins(self.path == Path::Avx512, self, lanes, rows, margins);
                }
                _ => walk::add_margins(self, lanes, rows, margins),
            };
        }
        let rows = rows.chunks(self.features.max(1) * BLOCK);
        for (rows, margins) in rows.zip(margins.chunks_mut(self.groups.max(1) * BLOCK)) {
            if rows.len() < self.features.max(1) * PATHS {
                let rows = rows.chunks_exact(self.features.max(1));
                rows.zip(margins.chunks_exact_mut(self.groups.max(1)))
                    .for_each(|(row, margins)| self.add_row(row, margins));
            } else {
                self.add_block(rows, margins);
            }
        }
    }

    /// One row: a few trees at the same time, which are added one after the other.
    fn add_row(&self, row: &[T], margins: &mut [T]) {
        let (groups, rest) = self.roots.as_chunks::<PATHS>();
        for roots in groups {
            for (root, leaf) in roots.iter().zip(self.leaves(roots.map(|root| root.node), [row; PATHS])) {
                if let Some(margin) = margins.get_mut(root.group as usize) {
                    *margin += leaf;
                }
            }
        }
        for root in rest {
            if let Some(margin) = margins.get_mut(root.group as usize) {
                *margin += self.leaf(root.node, row);
            }
        }
    }

    /// A block of rows: tree after tree, a few rows at the same time.
    fn add_block(&self, rows: &[T], margins: &mut [T]) {
        let (features, groups) = (self.features.max(1), self.groups.max(1));
        for root in &self.roots {
            let rows = rows.chunks(features * PATHS);
            for (rows, margins) in rows.zip(margins.chunks_mut(groups * PATHS)) {
                let mut margins = margins.iter_mut().skip(root.group as usize).step_by(groups);
                if rows.len() == features * PATHS {
                    let rows = std::array::from_fn(|at| &rows[at * features..(at + 1) * features]);
                    for (margin, leaf) in margins.zip(self.leaves([root.node; PATHS], rows)) {
                        *margin += leaf;
                    }
                } else {
                    for row in rows.chunks_exact(features) {
                        if let Some(margin) = margins.next() {
                            *margin += self.leaf(root.node, row);
                        }
                    }
                }
            }
        }
    }

    /// Goes down a few paths in lockstep, until all have ended.
    fn leaves(&self, mut at: [u32; PATHS], rows: [&[T]; PATHS]) -> [T; PATHS] {
        loop {
            let mut moved = 0;
            let mut leaves = [T::default(); PATHS];
            for ((at, row), leaf) in at.iter_mut().zip(rows).zip(&mut leaves) {
                let node = self.nodes[*at as usize];
                // A leaf has no feature, and a row may have none.
                let x = row.get((node.split & FEATURE) as usize).copied().unwrap_or_default();
                let next = node.left + u32::from(!self.goes_left(&node, x));
                *at = if node.left == 0 { *at } else { next };
                *leaf = node.value;
                moved |= node.left;
            }
            if moved == 0 {
                return leaves;
            }
        }
    }

    /// Goes down one tree. `new` has proved that every index is in range and that each path ends.
    fn leaf(&self, root: u32, row: &[T]) -> T {
        let mut node = self.nodes[root as usize];
        while node.left != 0 {
            let x = row[(node.split & FEATURE) as usize];
            node = self.nodes[node.left as usize + usize::from(!self.goes_left(&node, x))];
        }
        node.value
    }

    fn goes_left(&self, node: &Node<T>, x: T) -> bool {
        let missing_left = node.split & MISSING_LEFT != 0;
        if node.split & (CATEGORICAL | EQUAL) == 0 {
            // No branch: which way it goes is what nobody can foresee.
            return (x < node.value) | (x.is_nan() & missing_left);
        }
        if x.is_nan() {
            missing_left
        } else if node.split & EQUAL == 0 {
            !self.contains(node.value.index(), x)
        } else {
            x != node.value
        }
    }

    /// Calls back with each category of a set.
    fn categories(&self, set: u32, mut each: impl FnMut(u32)) {
        let Some(Set { from, end, listed }) = self.sets.get(set as usize).copied() else { return };
        let words = self.words.get(from as usize..end as usize).unwrap_or_default();
        for (at, word) in (0..).zip(words) {
            if listed {
                each(*word);
            } else {
                (0..32).filter(|bit| word >> bit & 1 == 1).for_each(|bit| each(at * 32 + bit));
            }
        }
    }

    fn contains(&self, set: u32, x: T) -> bool {
        let Some(category) = x.category() else { return false };
        let Set { from, end, listed } = self.sets[set as usize];
        let words = &self.words[from as usize..end as usize];
        if listed {
            return words.binary_search(&category).is_ok();
        }
        words.get(category as usize / 32).is_some_and(|word| word >> (category % 32) & 1 == 1)
    }

    /// Bytes of memory that the trees hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node<T>>()
            + self.roots.capacity() * size_of::<Root>()
            + self.words.capacity() * size_of::<u32>()
            + self.sets.capacity() * size_of::<Set>()
            + self.lanes.as_ref().map_or(0, Lanes::memory_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(feature: usize, threshold: f64, left: usize, right: usize) -> Split {
        Split::Below { feature, threshold, children: Children { left, right, missing_left: true } }
    }

    fn tree(nodes: Vec<Split>) -> Tree {
        Tree { nodes, ..Tree::default() }
    }

    fn ask(forest: &Forest<f32>, row: &[f32]) -> f32 {
        let mut margin = [0.0];
        forest.add_margins(row, &mut margin);
        margin[0]
    }

    #[test]
    fn equal_goes_right_and_missing_goes_its_own_way() {
        let nodes = vec![below(1, 2.5, 2, 1), Split::Leaf(10.0), Split::Leaf(20.0)];
        let forest = Forest::new(2, 1, &[tree(nodes)]).expect("a tree");
        for (x, leaf) in [(2.4, 20.0), (2.5, 10.0), (f32::NAN, 20.0), (f32::INFINITY, 10.0), (f32::NEG_INFINITY, 20.0)]
        {
            assert_eq!(ask(&forest, &[7.0, x]), leaf, "{x}");
        }
    }

    #[test]
    fn just_the_value_goes_right() {
        let children = Children { left: 1, right: 2, missing_left: false };
        let split = Split::Equal { feature: 0, value: 2.5, children };
        let forest = Forest::new(1, 1, &[tree(vec![split, Split::Leaf(1.0), Split::Leaf(2.0)])]).expect("a tree");
        for (x, leaf) in [(2.5, 2.0), (2.5_f32.next_up(), 1.0), (2.0, 1.0), (f32::NAN, 2.0), (f32::INFINITY, 1.0)] {
            assert_eq!(ask(&forest, &[x]), leaf, "{x}");
        }
    }

    #[test]
    fn a_forest_in_fp64_tells_numbers_apart_that_fp32_does_not() {
        let trees = [tree(vec![below(0, 0.1, 1, 2), Split::Leaf(0.1), Split::Leaf(0.7)])];
        let forest = Forest::<f64>::new(1, 1, &trees).expect("a tree");
        let mut margins = [0.2, 0.2];
        forest.add_margins(&[0.1_f64.next_down(), 0.1], &mut margins);
        assert_eq!(margins, [0.2 + 0.1, 0.2 + 0.7]);
        let error = Forest::<f32>::new(1, 1, &trees).expect_err("0.1").to_string();
        assert!(error.ends_with("0.1 is too precise for this forest"), "{error}");
    }

    #[test]
    fn a_category_of_the_set_goes_right() {
        let children = Children { left: 1, right: 2, missing_left: false };
        // The first is kept as a bitset, the second as a list.
        for categories in [vec![1, 40], vec![70_000, 1, 40]] {
            let most = categories.iter().max().map_or(0.0, |max| *max as f32);
            let split = Split::Among { feature: 0, categories, children };
            let forest = Forest::new(1, 1, &[tree(vec![split, Split::Leaf(1.0), Split::Leaf(2.0)])]).expect("a tree");
            for (x, leaf) in [(1.0, 2.0), (1.9, 2.0), (40.0, 2.0), (most, 2.0), (f32::NAN, 2.0)] {
                assert_eq!(ask(&forest, &[x]), leaf, "{x}");
            }
            for x in [0.0, -1.0, -0.5, 39.0, 41.0, 64.0, 70_001.0, 3e7, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(ask(&forest, &[x]), 1.0, "{x}");
            }
        }
    }

    #[test]
    fn rows_of_several_blocks_each_get_their_own_answer() {
        let trees = |group| Tree { group, ..tree(vec![below(0, 50.0, 1, 2), Split::Leaf(1.0), Split::Leaf(2.0)]) };
        let forest = Forest::new(1, 2, &[trees(1), trees(0), trees(1)]).expect("three trees");
        let rows: Vec<f32> = (0..200).map(|row| (row % 100) as f32).collect();
        let mut margins = vec![0.0; 400];
        forest.add_margins(&rows, &mut margins);
        for (row, margins) in rows.iter().zip(margins.chunks(2)) {
            assert_eq!(margins, if *row < 50.0 { [1.0, 2.0] } else { [2.0, 4.0] }, "{row}");
        }
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let leaf = || Split::Leaf(1.0);
        let children = Children { left: 1, right: 2, missing_left: false };
        let far = Split::Among { feature: 0, categories: vec![u32::MAX], children };
        let chain = |length: usize| {
            let mut nodes: Vec<_> = (0..length).flat_map(|i| [below(0, 0.0, 2 * i + 1, 2 * i + 2), leaf()]).collect();
            nodes.push(leaf());
            nodes
        };
        for (nodes, says) in [
            (vec![], "node 0: there is no such node, there are 0"),
            (vec![below(0, 0.0, 1, 2), leaf()], "node 2: there is no such node, there are 2"),
            (vec![below(0, 0.0, 0, 1), leaf()], "node 0: two paths"),
            (vec![below(0, 0.0, 1, 2), leaf(), below(0, 0.0, 0, 1)], "node 0: two paths"),
            (vec![below(0, 0.0, 1, 1), leaf()], "node 1: two paths"),
            (vec![leaf(), leaf()], "node 0: no path leads to 1 nodes, and 0"),
            (vec![below(3, 0.0, 1, 2), leaf(), leaf()], "node 0: it splits on feature 3 of 3"),
            (vec![below(0, f64::NAN, 1, 2), leaf(), leaf()], "node 0: its threshold is NaN"),
            (vec![Split::Leaf(f64::INFINITY)], "node 0: its leaf is inf"),
            (vec![far, leaf(), leaf()], "node 0: its category 4294967295 is not below 16777216"),
            (chain(3000), "it lies deeper than 2048"),
        ] {
            let error = Forest::<f32>::new(3, 1, &[tree(vec![leaf()]), tree(nodes)]).expect_err(says).to_string();
            assert!(error.starts_with("tree 1, ") && error.contains(says), "{error:?} does not say {says:?}");
        }
        assert!(Forest::<f32>::new(3, 1, &[tree(chain(2000))]).is_ok());
        let other = Tree { group: 2, ..tree(vec![leaf()]) };
        assert!(Forest::<f32>::new(3, 2, &[other]).is_err());
    }

    mod all_paths {
        use proptest::prelude::*;

        use super::*;

        /// Numbers that are thresholds, categories and values at the same time, so that ties are common.
        fn number() -> impl Strategy<Value = f64> {
            prop_oneof![
                8 => (-6..40_i32).prop_map(|n| f64::from(n) / 2.0),
                4 => (0..1200_i32).prop_map(|n| f64::from(n) / 64.0),
                1 => Just(f64::INFINITY),
                1 => Just(f64::NEG_INFINITY),
                1 => Just(-0.0),
                1 => Just(1e30),
            ]
        }

        /// A tree of so many splits: each takes the place of a leaf, the last one where `lean` is true.
        fn shaped(features: usize, groups: usize, splits: usize, kinds: bool) -> impl Strategy<Value = Tree> {
            let split =
                (0..features, number(), 0..if kinds { 4_u8 } else { 1 }, any::<bool>(), any::<u16>(), -9.0..9.0_f64);
            let splits = proptest::collection::vec(split, 0..=splits);
            (0..groups, splits, any::<bool>()).prop_map(|(group, splits, lean): (_, Vec<(_, _, _, _, _, f64)>, _)| {
                let mut nodes = vec![Split::Leaf(0.75)];
                let mut leaves = vec![0];
                for (feature, number, kind, missing_left, at, leaf) in splits {
                    let at = if lean { leaves.len() - 1 } else { usize::from(at) % leaves.len() };
                    let children = Children { left: nodes.len(), right: nodes.len() + 1, missing_left };
                    let place = leaves.swap_remove(at);
                    leaves.extend([children.left, children.right]);
                    nodes.extend([Split::Leaf(f64::from(leaf as f32)), Split::Leaf(f64::from(-leaf as f32 / 3.0))]);
                    nodes[place] = match kind {
                        2 => Split::Equal { feature, value: number, children },
                        3 => {
                            let first = number.clamp(0.0, 1e6) as u32;
                            let categories = (0..u32::from(leaf.abs() as u16)).map(|n| first + n * n).collect();
                            Split::Among { feature, categories, children }
                        }
                        _ => Split::Below { feature, threshold: f64::from(number as f32), children },
                    };
                    if kind == 2 {
                        let Split::Equal { value, .. } = &mut nodes[place] else { continue };
                        *value = f64::from(*value as f32);
                    }
                }
                Tree { group, nodes, unreachable: 0 }
            })
        }

        #[derive(Debug)]
        struct Case {
            features: usize,
            groups: usize,
            trees: Vec<Tree>,
            rows: Vec<f64>,
        }

        fn case() -> impl Strategy<Value = Case> {
            let sizes = (1..90_usize, 1..4_usize, prop_oneof![Just(7_usize), Just(63), Just(70)], any::<bool>());
            sizes.prop_flat_map(|(features, groups, splits, kinds)| {
                let trees = proptest::collection::vec(shaped(features, groups, splits, kinds), 1..24);
                let x = prop_oneof![6 => number(), 1 => Just(f64::NAN), 1 => -2.0..20.0];
                let rows = prop_oneof![Just(1_usize), 2..200_usize, Just(513)];
                let rows = rows.prop_flat_map(move |rows| proptest::collection::vec(x.clone(), 40 * rows));
                (trees, rows).prop_map(move |(trees, some)| {
                    // The same numbers again and again, in another column each time.
                    let rows = some.len() / 40 * features;
                    let rows = some.iter().cycle().skip(features % 7).take(rows).copied().collect();
                    Case { features, groups, trees, rows }
                })
            })
        }

        fn check<T: Number>(case: &Case, rows: &[T], first: T) -> Result<(), TestCaseError> {
            let Case { features, groups, trees, .. } = case;
            let plain = Forest::with(*features, *groups, trees, Some(Path::Plain)).expect("trees");
            let mut expected = vec![first; rows.len() / features * groups];
            for (row, margins) in rows.chunks(*features).zip(expected.chunks_mut(*groups)) {
                for root in &plain.roots {
                    margins[root.group as usize] += plain.leaf(root.node, row);
                }
            }
            for path in Path::ALL.into_iter().filter(|path| path.available()) {
                let forest = Forest::with(*features, *groups, trees, Some(path)).expect("trees");
                let mut margins = vec![first; expected.len()];
                forest.add_margins(rows, &mut margins);
                prop_assert_eq!(&margins, &expected, "{:?}", path);
                let mut margins = vec![first; *groups];
                forest.add_margins(&rows[..*features], &mut margins);
                prop_assert_eq!(&margins, &expected[..*groups], "{:?}", path);
            }
            Ok(())
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

            #[test]
            fn give_the_same_bits(case in case()) {
                let narrow: Vec<f32> = case.rows.iter().map(|x| *x as f32).collect();
                check(&case, &narrow, 0.1_f32)?;
                check(&case, &case.rows, 0.1_f64)?;
            }
        }
    }
}
