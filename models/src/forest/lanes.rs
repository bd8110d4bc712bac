//! The form of a forest that vectors of bytes go through: numbers become ranks, and nodes become comparisons of bytes.
//!
//! A feature's thresholds are sorted, and a number is replaced by how many of them it reaches: then `x < threshold` is a
//! comparison of two bytes, whatever the precision of the model. Each feature has a few *columns* of such bytes: one for
//! each 255 thresholds, twice if some splits send missing values left and others right, for then a missing value is the
//! least rank in one and the greatest in the other. Categories, and numbers that are compared for equality, become codes,
//! and a split a set of 256 bits.
//!
//! ```text
//!   one row: a tree's nodes side by side     rows: 64 rows side by side, node after node
//!     all comparisons of a tree at once        reach[left]  = reach[node] and not test
//!     ──► 64 bits ──► the leaf                 reach[right] = reach[node] and test
//! ```
//!
//! Nothing is decided here that the plain form would decide in another way: the leaf of a tree is the same, and leaves
//! are added in the same order and precision.

use std::collections::BTreeMap;

use super::{CATEGORICAL, EQUAL, FEATURE, Forest, MISSING_LEFT, Node, Number};

/// Leaves of the largest tree that has this form; it has one split fewer, which fit the bits of a word.
pub(super) const LEAVES: usize = 64;

/// Ranks of one column: 0 to 255.
const CUTS: usize = 255;

/// Two comparisons with so many thresholds find a rank.
pub(super) const RUNGS: usize = 16;

/// Codes of one set: [`OTHER`], [`MISSING`] and the categories.
const CODES: usize = 256;
const OTHER: u8 = 0;
const MISSING: u8 = 1;
const FIRST: usize = 2;

/// Columns that a byte can name.
const NARROW: usize = 256;

/// Depth of a tree whose nodes are numbered like those of a full one.
const FULL_DEPTH: u32 = 6;

/// Fewer trees are gone down before the numbers of a row have become bytes.
const TREES: usize = 12;

/// A vector of bytes, and a line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Bytes(pub(super) [u8; 64]);

/// A vector of words.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Words(pub(super) [u64; 8]);

#[derive(Debug)]
pub(super) struct Lanes<T> {
    /// What each used feature becomes.
    pub(super) ranked: Vec<Ranked>,
    pub(super) coded: Vec<Coded>,
    /// The sorted thresholds of all features.
    cuts: Vec<T>,
    /// The same thresholds as vectors: the last of each sixteen, then the sixteens; NaN where there is none.
    ladders: Vec<[T; RUNGS]>,
    /// The sorted categories, or numbers, of all sets.
    categories: Vec<u32>,
    values: Vec<T>,
    /// How many columns of ranks there are, and columns in all.
    pub(super) ranks: usize,
    pub(super) columns: usize,

    /// Who adds to which margin, in the order of the additions.
    pub(super) runs: Vec<Run>,
    pub(super) trees: Vec<Small>,
    /// For rows side by side.
    pub(super) tests: Vec<Test>,
    pub(super) sets: Vec<SetTest>,
    pub(super) steps: Vec<Step>,
    /// 64 for each tree.
    pub(super) leaves: Vec<[T; LEAVES]>,
    /// For nodes side by side: the column and the rank of each test, if a byte can name all columns.
    pub(super) wide: Vec<[Bytes; 2]>,
    /// For nodes side by side: by feature, code and tree, the splits where the code goes right. Empty, if it would be large.
    masks: Vec<u64>,
    /// Which leaves each test that goes right leaves over; empty where all trees are numbered like full ones.
    pub(super) left_over: Vec<Words>,
}

/// Trees that follow each other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Run {
    /// `trees[from..end]`.
    Small { from: usize, end: usize },
    /// One that does not fit: its root in the plain form, and its margin.
    Plain { root: u32, group: u32 },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Small {
    pub(super) group: u32,
    /// Where its parts end; they begin where those of the tree before end.
    pub(super) tests: u32,
    pub(super) sets: u32,
    pub(super) steps: u32,
    pub(super) left_over: u32,
    pub(super) leaves: u8,
    /// Whether every leaf has been given a number below `leaves`.
    pub(super) dense: bool,
}

/// `column[row] > rank` goes right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Test {
    pub(super) column: u16,
    pub(super) slot: u8,
    pub(super) rank: u8,
}

/// A code in the set goes right.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetTest {
    /// The column of bytes, the one of bits follows.
    pub(super) column: u16,
    /// The index into `coded`.
    pub(super) coded: u16,
    pub(super) slot: u8,
    pub(super) bits: [u8; CODES / 8],
}

/// Where a slot's rows go: a slot, or from [`LEAVES`] on a leaf. Parents stand before their children.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) slot: u8,
    pub(super) left: u8,
    pub(super) right: u8,
}

/// A feature whose numbers become ranks.
#[derive(Debug)]
pub(super) struct Ranked {
    pub(super) feature: u32,
    from: u32,
    end: u32,
    /// Where in `ladders`, if there are not too few thresholds nor too many.
    ladder: Option<u32>,
    /// The first column of those where a missing value is the least rank, and of those where it is the greatest.
    pub(super) low: Option<u16>,
    pub(super) high: Option<u16>,
}

/// A feature whose numbers become codes.
#[derive(Debug)]
pub(super) struct Coded {
    pub(super) feature: u32,
    from: u32,
    end: u32,
    /// Whether numbers are compared as they are; as categories otherwise.
    equal: bool,
    pub(super) column: u16,
    /// Where its words are in `masks`.
    masks: usize,
}

impl Coded {
    fn codes(&self) -> usize {
        FIRST + (self.end - self.from) as usize
    }
}

impl SetTest {
    pub(super) fn has(&self, code: u8) -> bool {
        self.bits[usize::from(code / 8)] >> (code % 8) & 1 == 1
    }
}

impl<T: Number> Lanes<T> {
    /// Turns what fits of a proved forest into this form; none, if it would not pay.
    pub(super) fn new(forest: &Forest<T>, always: bool) -> Option<Self> {
        let mut shapes = Vec::with_capacity(forest.roots.len());
        for root in &forest.roots {
            shapes.push(Shape::of(forest, root.node));
        }
        let mut lanes = Self {
            ranked: Vec::new(),
            coded: Vec::new(),
            cuts: Vec::new(),
            ladders: Vec::new(),
            categories: Vec::new(),
            values: Vec::new(),
            ranks: 0,
            columns: 0,
            runs: Vec::new(),
            trees: Vec::new(),
            tests: Vec::new(),
            sets: Vec::new(),
            steps: Vec::new(),
            leaves: Vec::new(),
            wide: Vec::new(),
            masks: Vec::new(),
            left_over: Vec::new(),
        };
        let codes = lanes.columns(forest, &mut shapes)?;
        let fit = shapes.iter().flatten().count();
        let pays = fit >= TREES && fit * 2 >= shapes.len() && fit * 4 >= lanes.ranked.len() + lanes.coded.len();
        if fit == 0 || (!pays && !always) {
            return None;
        }
        let full = shapes.iter().flatten().all(|shape| shape.depth <= FULL_DEPTH);
        for (root, shape) in forest.roots.iter().zip(&shapes) {
            match shape {
                Some(shape) => {
                    let at = lanes.trees.len();
                    match lanes.runs.last_mut() {
                        Some(Run::Small { end, .. }) => *end = at + 1,
                        _ => lanes.runs.push(Run::Small { from: at, end: at + 1 }),
                    }
                    lanes.push(forest, shape, root.group, full, &codes)?;
                }
                None => lanes.runs.push(Run::Plain { root: root.node, group: root.group }),
            }
        }
        lanes.masks(forest.nodes.len().saturating_mul(2 * size_of::<Node<T>>()));
        lanes.shrink();
        Some(lanes)
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

    /// The splits of each tree where a code goes right, if they are known.
    pub(super) fn codes_go_right(&self, coded: &Coded, code: u8) -> Option<&[u64]> {
        let from = coded.masks + usize::from(code) * self.trees.len();
        self.masks.get(from..from + self.trees.len()).filter(|masks| !masks.is_empty())
    }

    /// Whether one row alone can be answered in this form.
    pub(super) fn narrow(&self) -> bool {
        self.ranks <= NARROW
    }

    /// Gives each feature its columns. Trees whose sets have too many categories lose their shape.
    fn columns(&mut self, forest: &Forest<T>, shapes: &mut [Option<Shape>]) -> Option<Codes> {
        let mut sets: BTreeMap<(u32, bool), Vec<u32>> = BTreeMap::new();
        let mut values: BTreeMap<u32, Vec<T>> = BTreeMap::new();
        for node in shapes.iter().flatten().flat_map(|shape| shape.splits(forest)) {
            let feature = node.split & FEATURE;
            if node.split & CATEGORICAL != 0 {
                let set = sets.entry((feature, false)).or_default();
                forest.categories(node.value.index(), |category| set.push(category));
                if set.len() > 64 * CODES {
                    set.sort_unstable();
                    set.dedup();
                }
            } else if node.split & EQUAL != 0 {
                values.entry(feature).or_default().push(node.value);
            }
        }
        let mut codes = Codes::new();
        let mut refused = Vec::new();
        for ((feature, _), mut set) in sets {
            set.sort_unstable();
            set.dedup();
            let from = self.categories.len();
            if set.len() > CODES - FIRST {
                refused.push((feature, CATEGORICAL));
            } else {
                codes.insert((feature, CATEGORICAL), self.coded.len());
                self.categories.extend(set);
                self.coded.push(Coded {
                    feature,
                    from: narrow(from)?,
                    end: narrow(self.categories.len())?,
                    equal: false,
                    column: 0,
                    masks: 0,
                });
            }
        }
        for (feature, mut set) in values {
            sort(&mut set);
            let from = self.values.len();
            if set.len() > CODES - FIRST {
                refused.push((feature, EQUAL));
            } else {
                codes.insert((feature, EQUAL), self.coded.len());
                self.values.extend(set);
                self.coded.push(Coded {
                    feature,
                    from: narrow(from)?,
                    end: narrow(self.values.len())?,
                    equal: true,
                    column: 0,
                    masks: 0,
                });
            }
        }
        if !refused.is_empty() {
            for shape in shapes.iter_mut() {
                let kind = |node: &Node<T>| (node.split & FEATURE, node.split & (CATEGORICAL | EQUAL));
                if shape.as_ref().is_some_and(|shape| shape.splits(forest).any(|node| refused.contains(&kind(node)))) {
                    *shape = None;
                }
            }
        }

        let mut cuts: BTreeMap<u32, (Vec<T>, bool, bool)> = BTreeMap::new();
        for node in shapes.iter().flatten().flat_map(|shape| shape.splits(forest)) {
            if node.split & (CATEGORICAL | EQUAL) == 0 {
                let (cuts, low, high) = cuts.entry(node.split & FEATURE).or_default();
                cuts.push(node.value);
                *(if node.split & MISSING_LEFT == 0 { high } else { low }) = true;
            }
        }
        let mut next = 0_u16;
        for (feature, (mut set, low, high)) in cuts {
            sort(&mut set);
            let from = self.cuts.len();
            let columns = u16::try_from(set.len().div_ceil(CUTS)).ok()?;
            let ladder = self.ladder(&set);
            self.cuts.extend(set);
            let mut take = |used: bool| -> Option<Option<u16>> {
                let first = next;
                next = next.checked_add(if used { columns } else { 0 })?;
                Some(used.then_some(first))
            };
            let (low, high) = (take(low)?, take(high)?);
            self.ranked.push(Ranked { feature, from: narrow(from)?, end: narrow(self.cuts.len())?, ladder, low, high });
        }
        self.ranks = usize::from(next);
        for coded in &mut self.coded {
            coded.column = next;
            next = next.checked_add(2)?;
        }
        self.columns = usize::from(next);
        Some(codes)
    }

    fn ladder(&mut self, cuts: &[T]) -> Option<u32> {
        if cuts.len() < RUNGS || cuts.len() > CUTS {
            return None;
        }
        let at = narrow(self.ladders.len())?;
        let cut = |at: usize| cuts.get(at).copied().unwrap_or(T::NAN);
        self.ladders.push(std::array::from_fn(|rung| cut(rung * RUNGS + RUNGS - 1)));
        self.ladders.extend((0..RUNGS).map(|rung| std::array::from_fn::<_, RUNGS, _>(|at| cut(rung * RUNGS + at))));
        Some(at)
    }

    fn push(&mut self, forest: &Forest<T>, shape: &Shape, group: u32, full: bool, codes: &Codes) -> Option<()> {
        let mut leaves = [T::default(); LEAVES];
        let mut columns = [0; 64];
        let mut ranks = [u8::MAX; 64];
        let mut over = [Words([u64::MAX; 8]); LEAVES / 8];
        let mut splits = 0_usize;
        for spot in &shape.spots {
            let node = forest.nodes.get(spot.node as usize)?;
            let slot = spot.slot(full);
            let Some((left, right)) = spot.children else {
                *leaves.get_mut(usize::from(slot) - LEAVES)? = node.value;
                continue;
            };
            splits += 1;
            let target = |spot: usize| shape.spots.get(spot).map(|spot| spot.slot(full));
            self.steps.push(Step { slot, left: target(left)?, right: target(right)? });
            let gone = shape.spots.get(left)?.leaves;
            let word = over.get_mut(usize::from(slot) / 8)?.0.get_mut(usize::from(slot) % 8)?;
            *word &= !gone;

            let feature = node.split & FEATURE;
            let kind = node.split & (CATEGORICAL | EQUAL);
            let missing_left = node.split & MISSING_LEFT != 0;
            if kind == 0 {
                let at = self.ranked.binary_search_by_key(&feature, |ranked| ranked.feature).ok()?;
                let ranked = self.ranked.get(at)?;
                let cuts = self.cuts.get(ranked.from as usize..ranked.end as usize)?;
                let rank = cuts.partition_point(|cut| *cut < node.value);
                let first = if missing_left { ranked.low } else { ranked.high }?;
                let column = first + u16::try_from(rank / CUTS).ok()?;
                let rank = (rank % CUTS) as u8;
                self.tests.push(Test { column, slot, rank });
                if let Ok(column) = u8::try_from(column) {
                    *columns.get_mut(usize::from(slot))? = column;
                    *ranks.get_mut(usize::from(slot))? = rank;
                }
            } else {
                let at = *codes.get(&(feature, kind))?;
                let coded = self.coded.get(at)?;
                let mut bits = [0; CODES / 8];
                let mut set = |code: usize| {
                    if let Some(byte) = bits.get_mut(code / 8) {
                        *byte |= 1 << (code % 8);
                    }
                };
                if !missing_left {
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
        }
        if !full {
            self.left_over.extend(over.iter().take(splits.div_ceil(8)));
        }
        if self.narrow() {
            self.wide.push([Bytes(columns), Bytes(ranks)]);
        }
        self.leaves.push(leaves);
        self.trees.push(Small {
            group,
            tests: narrow(self.tests.len())?,
            sets: narrow(self.sets.len())?,
            steps: narrow(self.steps.len())?,
            left_over: narrow(self.left_over.len())?,
            leaves: u8::try_from(splits + 1).ok()?,
            dense: !full,
        });
        Some(())
    }

    fn shrink(&mut self) {
        self.cuts.shrink_to_fit();
        self.ladders.shrink_to_fit();
        self.trees.shrink_to_fit();
        self.tests.shrink_to_fit();
        self.sets.shrink_to_fit();
        self.steps.shrink_to_fit();
        self.leaves.shrink_to_fit();
        self.wide.shrink_to_fit();
        self.left_over.shrink_to_fit();
    }

    /// The thresholds of a feature, sorted.
    pub(super) fn cuts(&self, ranked: &Ranked) -> &[T] {
        self.cuts.get(ranked.from as usize..ranked.end as usize).unwrap_or_default()
    }

    /// The thresholds as vectors, the first for which of the others to look at. Then there is one column of each kind.
    pub(super) fn rungs(&self, ranked: &Ranked) -> Option<(&[T; RUNGS], &[[T; RUNGS]; RUNGS])> {
        let (first, others) = self.ladders.get(ranked.ladder? as usize..)?.split_first()?;
        Some((first, others.first_chunk()?))
    }

    /// The code of a number.
    pub(super) fn code(&self, coded: &Coded, x: T) -> u8 {
        if x.is_nan() {
            return MISSING;
        }
        let range = coded.from as usize..coded.end as usize;
        let at = if coded.equal {
            let known = self.values.get(range).unwrap_or_default();
            let at = known.partition_point(|value| *value < x);
            known.get(at).is_some_and(|value| *value == x).then_some(at)
        } else {
            let known = self.categories.get(range).unwrap_or_default();
            x.category().and_then(|category| known.binary_search(&category).ok())
        };
        // There are no more than fit.
        at.map_or(OTHER, |at| (FIRST + at) as u8)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        fn of<V>(vec: &Vec<V>) -> usize {
            vec.capacity() * size_of::<V>()
        }
        of(&self.ranked)
            + of(&self.coded)
            + of(&self.cuts)
            + of(&self.ladders)
            + of(&self.categories)
            + of(&self.values)
            + of(&self.runs)
            + of(&self.trees)
            + of(&self.tests)
            + of(&self.sets)
            + of(&self.steps)
            + of(&self.leaves)
            + of(&self.wide)
            + of(&self.masks)
            + of(&self.left_over)
    }
}

impl Ranked {
    /// Calls back with each column and its byte, for a number that reaches so many thresholds, or none that is missing.
    pub(super) fn each(&self, rank: Option<usize>, mut put: impl FnMut(usize, u8)) {
        let columns = ((self.end - self.from) as usize).div_ceil(CUTS);
        for (first, missing) in [(self.low, 0), (self.high, u8::MAX)] {
            let Some(first) = first else { continue };
            for column in 0..columns {
                let byte = rank.map_or(missing, |rank| rank.saturating_sub(column * CUTS).min(CUTS) as u8);
                put(usize::from(first) + column, byte);
            }
        }
    }
}

/// Where the codes of a feature, compared in one of two ways, are in `coded`.
type Codes = BTreeMap<(u32, u32), usize>;

/// A tree's nodes, parents before children, and what is to be known to number them.
struct Shape {
    spots: Vec<Spot>,
    depth: u32,
}

struct Spot {
    node: u32,
    /// The path to it: 1, and a bit for each turn.
    path: u64,
    depth: u32,
    /// Its number among the splits, or among the leaves from left to right.
    number: u8,
    /// Its leaves, by number.
    leaves: u64,
    children: Option<(usize, usize)>,
}

impl Spot {
    /// The number of a split, or of a leaf and [`LEAVES`]. In a full tree the first is the path; the second too, where a
    /// leaf that comes early lies at the left end of what would be below it.
    fn slot(&self, full: bool) -> u8 {
        let leaf = if self.children.is_none() { LEAVES as u8 } else { 0 };
        if !full {
            return self.number + leaf;
        }
        // Six turns at most.
        let path = if leaf == 0 { self.path } else { self.path << (FULL_DEPTH - self.depth) };
        (path % LEAVES as u64) as u8 + leaf
    }
}

impl Shape {
    /// The shape of a tree that is small enough.
    fn of<T: Number>(forest: &Forest<T>, root: u32) -> Option<Self> {
        let spot = |node, path, depth| Spot { node, path, depth, number: 0, leaves: 0, children: None };
        let mut spots = vec![spot(root, 1, 0)];
        let (mut at, mut splits, mut depth) = (0, 0, 0);
        while let Some(parent) = spots.get(at) {
            let (path, below) = (parent.path.wrapping_mul(2), parent.depth + 1);
            let node = forest.nodes.get(parent.node as usize)?;
            if node.left != 0 {
                if splits + 1 == LEAVES as u8 {
                    return None;
                }
                let left = spots.len();
                spots.push(spot(node.left, path, below));
                spots.push(spot(node.left + 1, path | 1, below));
                let parent = spots.get_mut(at)?;
                parent.children = Some((left, left + 1));
                parent.number = splits;
                splits += 1;
                depth = depth.max(below);
            }
            at += 1;
        }
        // Leaves from left to right.
        let mut open = vec![0];
        let mut leaf = 0;
        while let Some(at) = open.pop() {
            let spot = spots.get_mut(at)?;
            if let Some((left, right)) = spot.children {
                open.extend([right, left]);
            } else {
                spot.number = leaf;
                spot.leaves = 1 << leaf;
                leaf += 1;
            }
        }
        for at in (0..spots.len()).rev() {
            if let Some((left, right)) = spots.get(at)?.children {
                spots.get_mut(at)?.leaves = spots.get(left)?.leaves | spots.get(right)?.leaves;
            }
        }
        Some(Self { spots, depth })
    }

    fn splits<'a, T: Number>(&'a self, forest: &'a Forest<T>) -> impl Iterator<Item = &'a Node<T>> {
        let splits = self.spots.iter().filter(|spot| spot.children.is_some());
        splits.filter_map(|spot| forest.nodes.get(spot.node as usize))
    }
}

fn sort<T: Number>(numbers: &mut Vec<T>) {
    // None is NaN.
    numbers.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    numbers.dedup();
}

fn narrow(n: usize) -> Option<u32> {
    u32::try_from(n).ok()
}
