//! Decision trees in the one form that every tree format is turned into, and their evaluation.
//!
//! ```text
//!   xgboost ──┐                        ┌── add_margins (rows in blocks, trees outside, one step at a time)
//!   …         ├──► [Tree] ──► Forest ──┤
//!   …       ──┘   untrusted   checked  └── (a faster evaluator goes here, and no parser changes)
//! ```
//!
//! A parser describes its trees as a list of [`Tree`]s and trusts nothing; [`Forest::new`] proves them to be trees and
//! lays them out, in FP32 or FP64: the precision in which inputs are compared and leaves are added up. A split goes left
//! where `x < threshold`, which other comparisons can be written as: `x <= t` is `x < t.next_up()` in that precision, `>`
//! swaps the children.

use std::fmt;

/// Deeper trees come from no trainer; the limit bounds what one row may cost.
const MAX_DEPTH: u32 = 2048;

/// The first category that an `f32` cannot tell from the next one.
const CATEGORY_END: u32 = 1 << 24;

/// How many rows go down a tree before the next tree has its turn: the tree stays in the first-level cache, and so do
/// the rows' features.
const BLOCK: usize = 64;

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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tree {}, node {}: {}", self.tree, self.node, self.detail)
    }
}

/// The precision of a forest: FP32 or FP64.
pub(crate) trait Number:
    Copy + PartialOrd + std::ops::AddAssign + fmt::Debug + Default + Send + Sync + 'static
{
    /// The same number, if this precision has it.
    fn exactly(wide: f64) -> Option<Self>;
    fn is_nan(self) -> bool;
    /// The number whose bits are an index, and back.
    fn of_index(index: u32) -> Self;
    fn index(self) -> u32;
    /// What stands before the point, where it is the code of a category.
    fn category(self) -> Option<u32>;
}

impl Number for f32 {
    fn exactly(wide: f64) -> Option<Self> {
        let narrow = wide as Self;
        (f64::from(narrow) == wide || wide.is_nan()).then_some(narrow)
    }

    fn is_nan(self) -> bool {
        self.is_nan()
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
}

impl Number for f64 {
    fn exactly(wide: f64) -> Option<Self> {
        Some(wide)
    }

    fn is_nan(self) -> bool {
        self.is_nan()
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
}

/// Trees that are proved to be trees.
#[derive(Debug)]
pub(crate) struct Forest<T> {
    features: usize,
    groups: usize,
    /// All trees one after the other; the two children of a split stand side by side, after their parent.
    nodes: Vec<Node<T>>,
    /// The root of each tree with the margin it adds to, in the order of the additions.
    roots: Vec<Root>,
    /// The categories of all categorical splits, as bitsets or as sorted lists.
    words: Vec<u32>,
    /// Where the categories of each categorical split lie in `words`.
    sets: Vec<Set>,
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

impl<T: Number> Forest<T> {
    /// Proves that every list of nodes is a tree: indices in range, every node reached by one path (or declared
    /// unreachable), leaves and thresholds that are numbers, a bounded depth. Then lays them out flat.
    pub(crate) fn new(features: usize, groups: usize, trees: &[Tree]) -> Result<Self, Error> {
        let nodes = trees.iter().map(|tree| tree.nodes.len()).sum();
        let mut forest = Self {
            features,
            groups,
            nodes: Vec::with_capacity(nodes),
            roots: Vec::with_capacity(trees.len()),
            words: Vec::new(),
            sets: Vec::new(),
        };
        for (at, tree) in trees.iter().enumerate() {
            forest.push(tree).map_err(|(node, detail)| Error { tree: at, node, detail })?;
        }
        forest.nodes.shrink_to_fit();
        Ok(forest)
    }

    fn push(&mut self, tree: &Tree) -> Result<(), (usize, String)> {
        if tree.group >= self.groups {
            return Err((0, format!("it adds to output {} of {}", tree.group, self.groups)));
        }
        let group = u32::try_from(tree.group).map_err(|_| (0, "there are too many outputs".to_owned()))?;
        let root = self.reserve(1).map_err(|detail| (0, detail))?;
        self.roots.push(Root { node: root, group });

        let mut seen = vec![false; tree.nodes.len()];
        let mut reached = 0;
        // Where a node was, where it goes, and how deep it lies.
        let mut open = vec![(0_usize, root, 0_u32)];
        while let Some((from, to, depth)) = open.pop() {
            let (Some(node), Some(seen)) = (tree.nodes.get(from), seen.get_mut(from)) else {
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
                open.push((children.right, node.left + 1, depth + 1));
                open.push((children.left, node.left, depth + 1));
            }
            if let Some(place) = self.nodes.get_mut(to as usize) {
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
        if feature >= self.features {
            return Err(format!("it splits on feature {feature} of {}", self.features));
        }
        let feature = u32::try_from(feature).ok().filter(|feature| *feature <= FEATURE);
        let feature = feature.ok_or("there are too many features")?;
        let missing = if children.missing_left { MISSING_LEFT } else { 0 };
        let left = self.reserve(2)?;
        Ok((Node { split: feature | missing | kind, left, value }, Some(children)))
    }

    fn reserve(&mut self, nodes: usize) -> Result<u32, String> {
        let first = self.nodes.len();
        let end = first.checked_add(nodes).filter(|end| u32::try_from(*end).is_ok());
        let end = end.ok_or("there are too many nodes")?;
        self.nodes.resize(end, Node { split: 0, left: 0, value: T::default() });
        u32::try_from(first).map_err(|_| "there are too many nodes".to_owned())
    }

    fn push_set(&mut self, categories: &[u32]) -> Result<u32, String> {
        if let Some(category) = categories.iter().find(|category| **category >= CATEGORY_END) {
            return Err(format!("its category {category} is not below {CATEGORY_END}"));
        }
        let from = self.words.len();
        let bits = categories.iter().max().map_or(0, |max| *max as usize / 32 + 1);
        // A few high categories of a short file must not unfold into a long bitset.
        let listed = bits > 4 * categories.len();
        if listed {
            self.words.extend(categories);
            self.words[from..].sort_unstable();
        } else {
            self.words.resize(from + bits, 0);
            for category in categories {
                self.words[from + *category as usize / 32] |= 1 << (category % 32);
            }
        }
        let narrow = |n: usize| u32::try_from(n).map_err(|_| "there are too many categories".to_owned());
        self.sets.push(Set { from: narrow(from)?, end: narrow(self.words.len())?, listed });
        narrow(self.sets.len() - 1)
    }

    /// How many margins a row gets.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// Adds each row's leaves to its margins, in the forest's precision and in the order of the trees, as the trainers do it.
    ///
    /// `rows` is row-major with `features` columns, `margins` row-major with `groups`.
    pub(crate) fn add_margins(&self, rows: &[T], margins: &mut [T]) {
        let rows = rows.chunks(self.features.max(1) * BLOCK);
        for (rows, margins) in rows.zip(margins.chunks_mut(self.groups.max(1) * BLOCK)) {
            for root in &self.roots {
                let rows = rows.chunks_exact(self.features.max(1));
                for (row, margins) in rows.zip(margins.chunks_exact_mut(self.groups.max(1))) {
                    if let Some(margin) = margins.get_mut(root.group as usize) {
                        *margin += self.leaf(root.node, row);
                    }
                }
            }
        }
    }

    /// Goes down one tree. `new` has proved that every index is in range and that each path ends.
    fn leaf(&self, root: u32, row: &[T]) -> T {
        let mut node = self.nodes[root as usize];
        while node.left != 0 {
            let x = row[(node.split & FEATURE) as usize];
            let left = if x.is_nan() {
                node.split & MISSING_LEFT != 0
            } else if node.split & (CATEGORICAL | EQUAL) == 0 {
                x < node.value
            } else if node.split & EQUAL == 0 {
                !self.contains(node.value.index(), x)
            } else {
                x != node.value
            };
            node = self.nodes[node.left as usize + usize::from(!left)];
        }
        node.value
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
}
