//! How a forest becomes [`Lanes`]: in a few passes over its nodes, which are the parts of a load that trees take.
//!
//! The nodes of a tree lie side by side and parents before their children, so that most of what is to be known of a tree
//! comes from going along them once. Ranks are given out by sorting a feature's tests, and not by looking thresholds up.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::lanes::{
    Bytes, CODES, CUTS, Coded, FIRST, LEAVES, Lanes, MISSING, RUNGS, Ranked, Run, SetTest, Small, Step, Test, Words,
};
use super::{CATEGORICAL, EQUAL, FEATURE, Forest, MISSING_LEFT, Node, Number};

/// Depth of a tree whose nodes are numbered like those of a full one.
const FULL_DEPTH: u8 = 6;

/// Fewer trees are gone down before the numbers of a row have become bytes.
const TREES: usize = 12;

/// Nodes of the largest tree that has lanes.
const NODES: usize = 2 * LEAVES;

/// Where the codes of a feature, compared in one of two ways, are in `coded`.
type Codes = BTreeMap<(u32, u32), usize>;

/// A tree of the forest.
struct Stand<'a, T> {
    root: u32,
    group: u32,
    nodes: &'a [Node<T>],
    fits: bool,
}

impl<T> Stand<'_, T> {
    fn range(&self) -> Range<usize> {
        self.root as usize..self.root as usize + self.nodes.len()
    }
}

impl<T: Number> Lanes<T> {
    /// Turns what fits of a proved forest into this form; none, if it would not pay.
    pub(super) fn new(forest: &Forest<T>, always: bool) -> Option<Self> {
        // A bit is left for what else is to be said of a node.
        let end = narrow(forest.nodes.len()).filter(|end| *end <= MISSING_LEFT)?;
        let ends = forest.roots.iter().skip(1).map(|root| root.node).chain([end]);
        let mut stands = Vec::with_capacity(forest.roots.len());
        for (root, end) in forest.roots.iter().zip(ends) {
            let nodes = forest.nodes.get(root.node as usize..end as usize)?;
            stands.push(Stand { root: root.node, group: root.group, nodes, fits: nodes.len() < NODES });
        }
        let mut lanes = Self::default();
        let codes = lanes.codes(forest, &mut stands)?;
        let fit = stands.iter().filter(|stand| stand.fits).count();
        let tests = lanes.ranks(forest, &stands)?;
        let pays = fit >= TREES && fit * 2 >= stands.len() && fit * 4 >= lanes.ranked.len() + lanes.coded.len();
        if fit == 0 || (!pays && !always) {
            return None;
        }

        let mut shape = Shape::default();
        lanes.full = stands.iter().filter(|stand| stand.fits).all(|stand| shape.depth(stand) <= FULL_DEPTH);
        lanes.reserve(&stands, fit);
        for stand in &stands {
            if !stand.fits {
                lanes.runs.push(Run::Plain { root: stand.root, group: stand.group });
                continue;
            }
            let at = lanes.trees.len();
            match lanes.runs.last_mut() {
                Some(Run::Small { end, .. }) => *end = at + 1,
                _ => lanes.runs.push(Run::Small { from: at, end: at + 1 }),
            }
            shape.number(stand, lanes.full);
            lanes.push(forest, stand, &shape, tests.get(stand.range())?, &codes)?;
        }
        lanes.masks(forest.nodes.len().saturating_mul(2 * size_of::<Node<T>>()));
        lanes.sets.shrink_to_fit();
        lanes.left_over.shrink_to_fit();
        Some(lanes)
    }

    fn reserve(&mut self, stands: &[Stand<'_, T>], fit: usize) {
        let fitting = stands.iter().filter(|stand| stand.fits);
        let splits: usize = fitting.map(|stand| stand.nodes.len() / 2).sum();
        self.steps.reserve_exact(if self.full { 0 } else { splits });
        self.tests.reserve_exact(splits);
        self.trees.reserve_exact(fit);
        self.leaves.reserve_exact(fit);
        if self.narrow() {
            self.wide.reserve_exact(fit);
        }
    }

    /// Gives the features that are compared with categories and values their codes. Trees whose sets have too many
    /// categories do not fit.
    fn codes(&mut self, forest: &Forest<T>, stands: &mut [Stand<'_, T>]) -> Option<Codes> {
        let mut sets: BTreeMap<u32, Categories> = BTreeMap::new();
        let mut values: BTreeMap<u32, Vec<T>> = BTreeMap::new();
        for node in stands.iter().filter(|stand| stand.fits).flat_map(|stand| stand.nodes) {
            if node.split & CATEGORICAL != 0 {
                let set = sets.entry(node.split & FEATURE).or_default();
                if !set.refused {
                    forest.categories(node.value.index(), |category| set.push(category));
                }
            } else if node.split & EQUAL != 0 {
                values.entry(node.split & FEATURE).or_default().push(node.value);
            }
        }
        let mut codes = Codes::new();
        let mut refused = BTreeSet::new();
        let mut code = |feature: u32, kind: u32, from: usize, end: usize| -> Option<()> {
            codes.insert((feature, kind), self.coded.len());
            let (from, end) = (narrow(from)?, narrow(end)?);
            self.coded.push(Coded { feature, from, end, equal: kind == EQUAL, column: 0, masks: 0 });
            Some(())
        };
        for (feature, mut set) in sets {
            set.settle();
            if set.refused {
                refused.insert((feature, CATEGORICAL));
                continue;
            }
            let from = self.categories.len();
            self.categories.extend(set.seen);
            code(feature, CATEGORICAL, from, self.categories.len())?;
        }
        for (feature, mut set) in values {
            set.sort_unstable_by(T::total_cmp);
            set.dedup();
            if set.len() > CODES - FIRST {
                refused.insert((feature, EQUAL));
                continue;
            }
            let from = self.values.len();
            self.values.extend(set);
            code(feature, EQUAL, from, self.values.len())?;
        }
        if !refused.is_empty() {
            let kind = |node: &Node<T>| (node.split & FEATURE, node.split & (CATEGORICAL | EQUAL));
            for stand in stands {
                stand.fits &= !stand.nodes.iter().any(|node| node.left != 0 && refused.contains(&kind(node)));
            }
        }
        Some(codes)
    }

    /// Gives each feature its columns, and each comparison its column and rank: by the place of the node in the forest.
    fn ranks(&mut self, forest: &Forest<T>, stands: &[Stand<'_, T>]) -> Option<Vec<Test>> {
        let splits = || {
            let fitting = stands.iter().filter(|stand| stand.fits);
            let nodes = fitting.flat_map(|stand| stand.nodes.iter().zip(stand.root..));
            nodes.filter(|(node, _)| node.left != 0 && node.split & (CATEGORICAL | EQUAL) == 0)
        };
        let features = Features::of(forest.features, splits().map(|(node, _)| node.split & FEATURE));
        // Where each feature's comparisons lie, once they lie by feature.
        let mut ends = vec![0_usize; features.count + 1];
        for (node, _) in splits() {
            *ends.get_mut(features.place(node.split & FEATURE) + 1)? += 1;
        }
        let mut total = 0;
        for end in &mut ends {
            total += *end;
            *end = total;
        }
        let mut sorted = vec![(T::default(), 0_u32); total];
        for (node, at) in splits() {
            let place = ends.get_mut(features.place(node.split & FEATURE))?;
            *sorted.get_mut(*place)? = (node.value, at | node.split & MISSING_LEFT);
            *place += 1;
        }

        let mut tests = vec![Test { column: 0, slot: 0, rank: 0 }; forest.nodes.len()];
        let mut next = 0_u16;
        let mut from = 0;
        for (feature, end) in features.iter().zip(ends) {
            let sorted = sorted.get_mut(from..end)?;
            from = end;
            sorted.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
            let first = self.cuts.len();
            self.cuts.extend(sorted.chunk_by(|(a, _), (b, _)| a == b).filter_map(|same| Some(same.first()?.0)));
            let columns = u16::try_from((self.cuts.len() - first).div_ceil(CUTS)).ok()?;
            let mut take = |side: u32| -> Option<Option<u16>> {
                let used = sorted.iter().any(|(_, at)| at & MISSING_LEFT == side);
                let first = next;
                next = next.checked_add(if used { columns } else { 0 })?;
                Some(used.then_some(first))
            };
            let (low, high) = (take(MISSING_LEFT)?, take(0)?);
            for (rank, same) in sorted.chunk_by(|(a, _), (b, _)| a == b).enumerate() {
                for (_, at) in same {
                    let test = tests.get_mut((at & !MISSING_LEFT) as usize)?;
                    let first = if at & MISSING_LEFT != 0 { low } else { high }?;
                    test.column = first + u16::try_from(rank / CUTS).ok()?;
                    test.rank = (rank % CUTS) as u8;
                }
            }
            let ladder = self.ladder(first);
            let (from, end) = (narrow(first)?, narrow(self.cuts.len())?);
            self.ranked.push(Ranked { feature, from, end, ladder, low, high });
        }
        self.cuts.shrink_to_fit();
        self.ladders.shrink_to_fit();
        self.ranks = usize::from(next);
        for coded in &mut self.coded {
            coded.column = next;
            next = next.checked_add(2)?;
        }
        self.columns = usize::from(next);
        Some(tests)
    }

    /// The vectors of the thresholds from there on, if they are not too few nor too many.
    fn ladder(&mut self, first: usize) -> Option<u32> {
        let cuts = self.cuts.get(first..)?;
        if cuts.len() < RUNGS || cuts.len() > CUTS {
            return None;
        }
        let at = narrow(self.ladders.len())?;
        let cut = |at: usize| cuts.get(at).copied().unwrap_or(T::NAN);
        self.ladders.push(std::array::from_fn(|rung| cut(rung * RUNGS + RUNGS - 1)));
        self.ladders.extend((0..RUNGS).map(|rung| std::array::from_fn::<_, RUNGS, _>(|at| cut(rung * RUNGS + at))));
        Some(at)
    }

    /// Adds a tree, whose comparisons have their columns and ranks.
    fn push(
        &mut self,
        forest: &Forest<T>,
        stand: &Stand<'_, T>,
        shape: &Shape,
        tests: &[Test],
        codes: &Codes,
    ) -> Option<()> {
        let mut leaves = [T::default(); LEAVES];
        let mut wide = [Bytes([0; 64]), Bytes([u8::MAX; 64])];
        let mut over = [Words([u64::MAX; 8]); LEAVES / 8];
        for ((at, node), test) in stand.nodes.iter().enumerate().zip(tests) {
            let slot = *shape.slots.get(at)?;
            if node.left == 0 {
                *leaves.get_mut(usize::from(slot) - LEAVES)? = node.value;
                continue;
            }
            let left = (node.left - stand.root) as usize;
            if !self.full {
                self.steps.push(Step { slot, left: *shape.slots.get(left)?, right: *shape.slots.get(left + 1)? });
                *over.get_mut(usize::from(slot) / 8)?.0.get_mut(usize::from(slot) % 8)? &= !shape.leaves.get(left)?;
            }

            let kind = node.split & (CATEGORICAL | EQUAL);
            if kind == 0 {
                self.tests.push(Test { slot, ..*test });
                if let Ok(column) = u8::try_from(test.column) {
                    let [Bytes(columns), Bytes(ranks)] = &mut wide;
                    *columns.get_mut(usize::from(slot))? = column;
                    *ranks.get_mut(usize::from(slot))? = test.rank;
                }
                continue;
            }
            let at = *codes.get(&(node.split & FEATURE, kind))?;
            let coded = self.coded.get(at)?;
            let mut bits = [0; CODES / 8];
            let mut set = |code: usize| {
                if let Some(byte) = bits.get_mut(code / 8) {
                    *byte |= 1 << (code % 8);
                }
            };
            if node.split & MISSING_LEFT == 0 {
                set(usize::from(MISSING));
            }
            if kind == CATEGORICAL {
                let known = self.categories.get(coded.from as usize..coded.end as usize)?;
                forest.categories(node.value.index(), |category| {
                    if let Ok(at) = known.binary_search(&category) {
                        set(FIRST + at);
                    }
                });
            } else {
                let known = self.values.get(coded.from as usize..coded.end as usize)?;
                set(FIRST + known.partition_point(|value| *value < node.value));
            }
            self.sets.push(SetTest { column: coded.column, coded: u16::try_from(at).ok()?, slot, bits });
        }
        let splits = stand.nodes.len() / 2;
        if !self.full {
            self.left_over.extend(over.iter().take(splits.div_ceil(8)));
        }
        if self.narrow() {
            self.wide.push(wide);
        }
        self.leaves.push(leaves);
        self.trees.push(Small {
            group: stand.group,
            tests: narrow(self.tests.len())?,
            sets: narrow(self.sets.len())?,
            steps: narrow(self.steps.len())?,
            left_over: narrow(self.left_over.len())?,
            leaves: u8::try_from(splits + 1).ok()?,
        });
        Some(())
    }

    /// Tells for each code at once what it says to all trees, if that takes no more than so many bytes.
    fn masks(&mut self, most: usize) {
        let trees = self.trees.len();
        let mut total = 0_usize;
        for coded in &mut self.coded {
            coded.masks = total;
            total = total.saturating_add(coded.codes().saturating_mul(trees));
        }
        if !self.narrow() || total.saturating_mul(size_of::<u64>()) > most {
            return;
        }
        self.masks = vec![0; total];
        let mut from = 0;
        for (at, tree) in self.trees.iter().enumerate() {
            for test in self.sets.get(from..tree.sets as usize).unwrap_or_default() {
                let Some(coded) = self.coded.get(usize::from(test.coded)) else { continue };
                for code in (0..coded.codes()).filter(|code| test.has(*code as u8)) {
                    if let Some(mask) = self.masks.get_mut(coded.masks + code * trees + at) {
                        *mask |= 1 << (test.slot % 64);
                    }
                }
            }
            from = tree.sets as usize;
        }
    }
}

/// The categories that a feature is compared with, some of them more than once until it [settles](Self::settle).
#[derive(Default)]
struct Categories {
    seen: Vec<u32>,
    /// There are more than codes: no more are kept.
    refused: bool,
}

impl Categories {
    /// Takes the same time for each, however many come: what is left after settling is far less than before.
    fn push(&mut self, category: u32) {
        if self.refused {
            return;
        }
        self.seen.push(category);
        if self.seen.len() > 64 * CODES {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.seen.sort_unstable();
        self.seen.dedup();
        if self.seen.len() > CODES - FIRST {
            (self.seen, self.refused) = (Vec::new(), true);
        }
    }
}

/// A set of features, each with its place among them.
struct Features {
    bits: Vec<u64>,
    /// How many lie before each word.
    before: Vec<u32>,
    count: usize,
}

impl Features {
    fn of(features: usize, used: impl Iterator<Item = u32>) -> Self {
        let mut bits = vec![0_u64; features.div_ceil(64)];
        for feature in used {
            if let Some(word) = bits.get_mut(feature as usize / 64) {
                *word |= 1 << (feature % 64);
            }
        }
        let mut count = 0;
        let mut before = Vec::with_capacity(bits.len());
        for word in &bits {
            before.push(count);
            count += word.count_ones();
        }
        Self { before, bits, count: count as usize }
    }

    /// Of a feature that is in the set.
    fn place(&self, feature: u32) -> usize {
        let at = feature as usize / 64;
        let word = self.bits.get(at).copied().unwrap_or_default() & ((1 << (feature % 64)) - 1);
        (self.before.get(at).copied().unwrap_or_default() + word.count_ones()) as usize
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let words = self.bits.iter().zip(0_u32..).filter(|(word, _)| **word != 0);
        words.flat_map(|(word, at)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit))
    }
}

/// The numbers of a tree's nodes, which lie by their place in it: [`Shape::number`] fills them in, tree after tree.
struct Shape {
    /// The number of a split, or of a leaf and [`LEAVES`]. In a full tree the first is the path: 1, and a bit for each
    /// turn; the second too, where a leaf that comes early lies at the left end of what would be below it. In others splits
    /// are numbered as they lie, and leaves from left to right.
    slots: [u8; NODES],
    /// The leaves below a node of a tree that is not full, by number.
    leaves: [u64; NODES],
    depths: [u8; NODES],
    paths: [u8; NODES],
}

impl Default for Shape {
    fn default() -> Self {
        Self { slots: [0; NODES], leaves: [0; NODES], depths: [0; NODES], paths: [0; NODES] }
    }
}

impl Shape {
    /// The depth of the deepest leaf.
    fn depth<T>(&mut self, stand: &Stand<'_, T>) -> u8 {
        let mut deepest = 0;
        self.depths[0] = 0;
        for (at, node) in stand.nodes.iter().enumerate().filter(|(_, node)| node.left != 0) {
            let left = (node.left - stand.root) as usize % (NODES - 1);
            let below = self.depths[at % NODES] + 1;
            self.depths[left..left + 2].fill(below);
            deepest = deepest.max(below);
        }
        deepest
    }

    fn number<T>(&mut self, stand: &Stand<'_, T>, full: bool) {
        if full {
            self.depth(stand);
            self.paths[0] = 1;
            for (at, node) in stand.nodes.iter().enumerate() {
                let at = at % NODES;
                let path = self.paths[at];
                if node.left == 0 {
                    // Six turns at most.
                    self.slots[at] = LEAVES as u8 | (path << (FULL_DEPTH - self.depths[at]));
                } else {
                    self.slots[at] = path;
                    let left = (node.left - stand.root) as usize % (NODES - 1);
                    (self.paths[left], self.paths[left + 1]) = (2 * path, 2 * path + 1);
                }
            }
            return;
        }
        let splits = stand.nodes.iter().enumerate().filter(|(_, node)| node.left != 0);
        for (number, (at, _)) in (0..).zip(splits) {
            self.slots[at % NODES] = number;
        }
        let mut leaf = 0_u8;
        let mut open = [0_usize; NODES];
        let mut count = 1;
        while count > 0 {
            count -= 1;
            let at = open[count] % NODES;
            match stand.nodes.get(at) {
                Some(node) if node.left != 0 => {
                    let left = (node.left - stand.root) as usize;
                    // No more are open than there are nodes.
                    (open[count], open[(count + 1) % NODES]) = (left + 1, left);
                    count += 2;
                }
                _ => {
                    self.slots[at] = leaf + LEAVES as u8;
                    self.leaves[at] = 1 << (leaf % 64);
                    leaf += 1;
                }
            }
        }
        for (at, node) in stand.nodes.iter().enumerate().rev().filter(|(_, node)| node.left != 0) {
            let left = (node.left - stand.root) as usize % (NODES - 1);
            self.leaves[at % NODES] = self.leaves[left] | self.leaves[left + 1];
        }
    }
}

fn narrow(n: usize) -> Option<u32> {
    u32::try_from(n).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn categories_beyond_the_codes_are_given_up_and_not_kept() {
        // The benchmark has this file without its tests.
        use super::{CODES, Categories};
        let mut few = Categories::default();
        (0..100 * CODES as u32).for_each(|category| few.push(category % 254));
        few.settle();
        assert!(!few.refused);
        assert_eq!(few.seen, (0..254).collect::<Vec<_>>());
        let mut many = Categories::default();
        (0..100 * CODES as u32).for_each(|category| {
            many.push(category);
            assert!(many.seen.len() <= 64 * CODES);
        });
        assert!(many.refused && many.seen.is_empty());
    }
}
