//! The text of a model file, read line by line from where it lies.
//!
//! ```text
//!   tree                      the header: one `key=value` a line
//!   version=v4
//!   …
//!   Tree=0                    a block for each tree, that an empty line ends: arrays over its splits, which are
//!   num_leaves=31             counted from the root at 0, and over its leaves; the child -1 is leaf 0, -2 is leaf 1, …
//!   …
//!   end of trees              what follows says how the model was trained
//! ```

use std::str::FromStr;

use super::linear::Leaf;
use super::{Use, ZERO, malformed, unsupported};
use crate::LoadError;
use crate::forest::{Children, Split, Tree};

/// LightGBM's own limit of `num_leaves`.
const MAX_LEAVES: usize = 131_072;

/// The words of the largest bitset: its categories are below the forest's 2^24.
const MAX_WORDS: usize = (1 << 24) / 32;

/// The categories of all sets of a tree: a short text of full sets would unfold into a large list.
const MAX_CATEGORIES: usize = 1 << 24;

// The bits of `decision_type`, of which two are the missing type: None, Zero, NaN.
const CATEGORICAL: u8 = 1;
const DEFAULT_LEFT: u8 = 2;
const MISSING_SHIFT: u32 = 2;
const DECISION_END: u8 = 12;

/// The lines of a file, numbered from 1.
#[derive(Clone)]
pub(super) struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) number: usize,
    pub(super) text: &'a [u8],
}

impl<'a> Lines<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, number: 0 }
    }

    fn peek(&self) -> Option<Line<'a>> {
        self.clone().next()
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let (text, rest) = match end {
            Some(end) => (self.rest.get(..end)?, self.rest.get(end + 1..)?),
            None => (self.rest, &[][..]),
        };
        self.rest = rest;
        self.number += 1;
        Some(Line { number: self.number, text: text.strip_suffix(b"\r").unwrap_or(text) })
    }
}

/// A value, with where it stands.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    line: usize,
    name: &'static str,
    text: &'a [u8],
}

impl<'a> Field<'a> {
    pub(super) fn malformed(&self, detail: impl std::fmt::Display) -> LoadError {
        malformed(format!("line {}, {}: {detail}", self.line, self.name))
    }

    pub(super) fn utf8(&self) -> Result<&'a str, LoadError> {
        std::str::from_utf8(self.text).map_err(|_| self.malformed("it is not UTF-8"))
    }

    pub(super) fn count(&self) -> Result<usize, LoadError> {
        let count = self.utf8()?.trim().parse();
        count.map_err(|_| self.malformed(format!("{:?} is not a count", short(self.text))))
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.text.split(|byte| *byte == b' ').filter(|entry| !entry.is_empty())
    }

    /// Just so many numbers.
    fn numbers<T: FromStr>(&self, count: usize) -> Result<Vec<T>, LoadError> {
        // Of the text's length and not of the count, which may be made up.
        let mut numbers = Vec::with_capacity(count.min(self.text.len() / 2 + 1));
        for (at, entry) in self.entries().enumerate() {
            if at == count {
                return Err(self.malformed(format!("{} entries, not {count}", self.entries().count())));
            }
            let number = std::str::from_utf8(entry).ok().and_then(|entry| entry.parse().ok());
            numbers.push(number.ok_or_else(|| {
                self.malformed(format!("entry {at}, {:?}, is not a number that stands there", short(entry)))
            })?);
        }
        if numbers.len() != count {
            return Err(self.malformed(format!("{} entries, not {count}", numbers.len())));
        }
        Ok(numbers)
    }

    fn floats(&self, count: usize) -> Result<Vec<f64>, LoadError> {
        let floats: Vec<f64> = self.numbers(count)?;
        match floats.iter().position(|float| !float.is_finite()) {
            Some(at) => Err(self.malformed(format!("entry {at} is not a finite number"))),
            None => Ok(floats),
        }
    }
}

/// Enough of hostile bytes to recognize them.
pub(super) fn short(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..40).unwrap_or(bytes)).into_owned()
}

/// What stands before the trees, as far as it is needed.
pub(super) struct Header<'a> {
    pub(super) version: Field<'a>,
    pub(super) num_class: Field<'a>,
    pub(super) num_tree_per_iteration: Option<Field<'a>>,
    pub(super) max_feature_idx: Field<'a>,
    pub(super) objective: Option<Field<'a>>,
    pub(super) average_output: bool,
    pub(super) feature_names: Field<'a>,
    pub(super) tree_sizes: Option<Field<'a>>,
}

impl<'a> Header<'a> {
    pub(super) fn read(lines: &mut Lines<'a>) -> Result<Self, LoadError> {
        if lines.next().is_none_or(|line| line.text != b"tree") {
            return Err(malformed("line 1: it is not \"tree\""));
        }
        let mut fields = Fields::new([
            "version",
            "num_class",
            "num_tree_per_iteration",
            "max_feature_idx",
            "objective",
            "average_output",
            "feature_names",
            "tree_sizes",
        ]);
        while let Some(line) = lines.peek().filter(|line| !is_mark(line.text)) {
            lines.next();
            fields.take(line)?;
        }
        Ok(Self {
            version: fields.needed("version", "the header")?,
            num_class: fields.needed("num_class", "the header")?,
            num_tree_per_iteration: fields.get("num_tree_per_iteration"),
            max_feature_idx: fields.needed("max_feature_idx", "the header")?,
            objective: fields.get("objective"),
            average_output: fields.get("average_output").is_some(),
            feature_names: fields.needed("feature_names", "the header")?,
            tree_sizes: fields.get("tree_sizes"),
        })
    }
}

/// Whether a line ends the header or a tree's block.
fn is_mark(text: &[u8]) -> bool {
    text.starts_with(b"Tree=") || text == END
}

const END: &[u8] = b"end of trees";

/// Goes to the next tree, and answers its line; none is left after `end of trees`.
pub(super) fn next_tree(lines: &mut Lines<'_>, at: usize) -> Result<Option<usize>, LoadError> {
    let Some(line) = lines.find(|line| !line.text.is_empty()) else {
        return Err(malformed("the file ends early, without \"end of trees\""));
    };
    if line.text == END {
        return Ok(None);
    }
    let number = line.text.strip_prefix(b"Tree=").and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    if number != Some(at) {
        let text = short(line.text);
        return Err(malformed(format!("line {}: {text:?} stands where Tree={at} is expected", line.number)));
    }
    Ok(Some(line.number))
}

/// The fields of a block that are looked for.
struct Fields<'a, const N: usize> {
    names: [&'static str; N],
    found: [Option<Field<'a>>; N],
}

impl<'a, const N: usize> Fields<'a, N> {
    fn new(names: [&'static str; N]) -> Self {
        Self { names, found: [None; N] }
    }

    fn take(&mut self, line: Line<'a>) -> Result<(), LoadError> {
        let key = line.text.iter().position(|byte| *byte == b'=').unwrap_or(line.text.len());
        let (key, value) = (line.text.get(..key).unwrap_or_default(), line.text.get(key + 1..).unwrap_or_default());
        let Some(at) = self.names.iter().position(|name| name.as_bytes() == key) else { return Ok(()) };
        if let (Some(name), Some(slot)) = (self.names.get(at), self.found.get_mut(at)) {
            let field = Field { line: line.number, name, text: value };
            if slot.replace(field).is_some() {
                return Err(field.malformed("it is there twice"));
            }
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<Field<'a>> {
        let at = self.names.iter().position(|known| *known == name)?;
        *self.found.get(at)?
    }

    fn needed(&self, name: &str, block: &str) -> Result<Field<'a>, LoadError> {
        self.get(name).ok_or_else(|| malformed(format!("{block} has no {name}")))
    }
}

/// The block of one tree.
pub(super) struct TreeFields<'a> {
    line: usize,
    fields: Fields<'a, 15>,
}

/// A tree as its block describes it.
pub(super) struct TreeText {
    /// Its splits, then its leaves. A leaf of a linear tree has its own number for a value.
    pub(super) tree: Tree,
    /// The leaves of a linear tree.
    pub(super) leaves: Option<Vec<Leaf>>,
    /// About how many bytes all this takes.
    pub(super) bytes: usize,
}

impl<'a> TreeFields<'a> {
    /// The block after the line `Tree=…`, which has this number.
    pub(super) fn read(lines: &mut Lines<'a>, line: usize) -> Result<Self, LoadError> {
        let mut fields = Fields::new([
            "num_leaves",
            "num_cat",
            "split_feature",
            "threshold",
            "decision_type",
            "left_child",
            "right_child",
            "leaf_value",
            "cat_boundaries",
            "cat_threshold",
            "is_linear",
            "leaf_const",
            "num_features",
            "leaf_features",
            "leaf_coeff",
        ]);
        while let Some(line) = lines.peek().filter(|line| !line.text.is_empty() && !is_mark(line.text)) {
            lines.next();
            fields.take(line)?;
        }
        Ok(Self { line, fields })
    }

    /// Where the tree starts.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    fn needed(&self, name: &str) -> Result<Field<'a>, LoadError> {
        self.fields.needed(name, &format!("line {}: the tree", self.line))
    }

    /// Reads the arrays and makes nodes of them; what they make of each feature is added to `uses`.
    pub(super) fn parse(&self, uses: &mut [Use]) -> Result<TreeText, LoadError> {
        let num_leaves = self.needed("num_leaves")?;
        let leaves = num_leaves.count()?;
        if leaves == 0 || leaves > MAX_LEAVES {
            return Err(num_leaves.malformed(format!("{leaves} is not from 1 to {MAX_LEAVES}")));
        }
        let values = self.needed("leaf_value")?.floats(leaves)?;
        let linear = match self.fields.get("is_linear").map_or(Ok(0), |field| field.count())? {
            0 => None,
            1 => Some(self.linear(&values, uses.len())?),
            _ => return Err(self.needed("is_linear")?.malformed("it is neither 0 nor 1")),
        };
        let mut nodes = Vec::with_capacity(2 * leaves - 1);
        let mut categories = 0;
        if leaves > 1 {
            self.splits(leaves, uses, &mut nodes, &mut categories)?;
        }
        match &linear {
            Some(_) => nodes.extend((0..leaves).map(|leaf| Split::Leaf(leaf as f64))),
            None => nodes.extend(values.into_iter().map(Split::Leaf)),
        }
        let terms: usize = linear.iter().flatten().map(|leaf| leaf.terms.len()).sum();
        let bytes = nodes.len() * size_of::<Split>() + categories * size_of::<u32>() + terms * 16;
        Ok(TreeText { tree: Tree { group: 0, nodes, unreachable: 0 }, leaves: linear, bytes })
    }

    fn splits(
        &self,
        leaves: usize,
        uses: &mut [Use],
        nodes: &mut Vec<Split>,
        categories: &mut usize,
    ) -> Result<(), LoadError> {
        let splits = leaves - 1;
        let split_feature = self.needed("split_feature")?;
        let threshold = self.needed("threshold")?;
        let (left_child, right_child) = (self.needed("left_child")?, self.needed("right_child")?);
        let decision_type = self.fields.get("decision_type");
        let decisions = decision_type.map_or_else(|| Ok(vec![0_u8; splits]), |field| field.numbers(splits))?;
        let mut sets = self.sets()?;
        // A split between NaN and all numbers has an infinite one.
        let thresholds: Vec<f64> = threshold.numbers(splits)?;
        if let Some(at) = thresholds.iter().position(|threshold| threshold.is_nan()) {
            return Err(threshold.malformed(format!("entry {at} is NaN")));
        }

        let arrays = split_feature.numbers::<usize>(splits)?.into_iter().zip(thresholds).zip(decisions);
        let children = left_child.numbers::<i64>(splits)?.into_iter().zip(right_child.numbers::<i64>(splits)?);
        for (at, (((feature, threshold_at), decision), (left, right))) in arrays.zip(children).enumerate() {
            let child = |field: Field<'_>, child: i64| {
                let (index, end, from) = if child < 0 { (!child, leaves, splits) } else { (child, splits, 0) };
                let index = usize::try_from(index).ok().filter(|index| *index < end);
                index.map(|index| from + index).ok_or_else(|| {
                    field.malformed(format!("entry {at}, {child}, is none of {splits} splits and {leaves} leaves"))
                })
            };
            let (left, right) = (child(left_child, left)?, child(right_child, right)?);
            let features = uses.len();
            let Some(kind) = uses.get_mut(feature) else {
                return Err(split_feature.malformed(format!("entry {at}, {feature}, is none of {features} features")));
            };
            let decision_field = decision_type.unwrap_or(split_feature);
            let missing = decision >> MISSING_SHIFT;
            if decision >= DECISION_END {
                return Err(decision_field.malformed(format!("entry {at}, {decision}, is not below {DECISION_END}")));
            }
            if decision & CATEGORICAL != 0 {
                kind.category = true;
                let set =
                    if threshold_at.fract() == 0.0 && threshold_at >= 0.0 { threshold_at as usize } else { usize::MAX };
                let set = sets.get_mut(set).and_then(Option::take);
                let set = set.ok_or_else(|| {
                    threshold.malformed(format!(
                        "entry {at}, {threshold_at}, is no set of categories, or one that is in use"
                    ))
                })?;
                *categories += set.len();
                // What is in the set goes left, and here right; NaN is in no set.
                let children = Children { left: right, right: left, missing_left: true };
                nodes.push(Split::Among { feature, categories: set, children });
            } else {
                match missing {
                    0 => kind.none = true,
                    1 => kind.zero = true,
                    _ => kind.nan = true,
                }
                // Where nothing is missing, NaN is 0.
                let missing_left = if missing == 0 { 0.0 <= threshold_at } else { decision & DEFAULT_LEFT != 0 };
                let children = Children { left, right, missing_left };
                nodes.push(if threshold_at == f64::INFINITY {
                    // Every number goes left, the infinite one too: none is in the empty set.
                    Split::Among { feature, categories: Vec::new(), children }
                } else {
                    Split::Below { feature, threshold: below(threshold_at), children }
                });
            }
            if let Some(contradiction) = kind.contradicts() {
                return Err(unsupported(format!(
                    "feature {feature} to be both {contradiction} (line {}, {}, entry {at})",
                    decision_field.line, decision_field.name
                )));
            }
        }
        Ok(())
    }

    /// The sets of categories, from their bitsets.
    fn sets(&self) -> Result<Vec<Option<Vec<u32>>>, LoadError> {
        let num_cat = self.needed("num_cat")?;
        let count = num_cat.count()?;
        if count == 0 {
            return Ok(Vec::new());
        }
        if count >= MAX_LEAVES {
            return Err(num_cat.malformed(format!("{count} is more than a tree has splits")));
        }
        let (boundaries, words) = (self.needed("cat_boundaries")?, self.needed("cat_threshold")?);
        let ends: Vec<usize> = boundaries.numbers(count + 1)?;
        if ends.first() != Some(&0) || !ends.is_sorted() {
            return Err(boundaries.malformed("it does not rise from 0"));
        }
        let bits: Vec<u32> = words.numbers(ends.last().copied().unwrap_or(0))?;
        let total: usize = bits.iter().map(|word| word.count_ones() as usize).sum();
        if total > MAX_CATEGORIES {
            return Err(unsupported(format!("{total} categories in one tree (up to {MAX_CATEGORIES} are)")));
        }
        let set = |range: &[usize]| {
            let [from, end] = range else { return None };
            let words = bits.get(*from..*end)?;
            let words = words.get(..words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1))?;
            (words.len() <= MAX_WORDS).then(|| {
                let word = |(at, word): (usize, &u32)| {
                    let word = *word;
                    (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 32 + bit)
                };
                Some(words.iter().enumerate().flat_map(word).collect::<Vec<u32>>())
            })
        };
        let sets: Option<Vec<_>> = ends.windows(2).map(set).collect();
        sets.ok_or_else(|| unsupported(format!("codes of categories from 2^24 up (line {})", words.line)))
    }

    fn linear(&self, values: &[f64], features: usize) -> Result<Vec<Leaf>, LoadError> {
        let constants = self.needed("leaf_const")?.floats(values.len())?;
        let num_features = self.needed("num_features")?;
        let counts: Vec<usize> = num_features.numbers(values.len())?;
        let total = counts.iter().try_fold(0_usize, |total, count| total.checked_add(*count));
        let total = total.ok_or_else(|| num_features.malformed("its sum is out of range"))?;
        let (leaf_features, leaf_coeff) = (self.needed("leaf_features")?, self.needed("leaf_coeff")?);
        let used: Vec<u32> = leaf_features.numbers(total)?;
        if let Some(at) = used.iter().position(|feature| *feature as usize >= features) {
            return Err(leaf_features.malformed(format!("entry {at} is none of {features} features")));
        }
        let mut terms = used.into_iter().zip(leaf_coeff.floats(total)?);
        let leaves = values.iter().zip(constants).zip(counts);
        Ok(leaves
            .map(|((value, constant), count)| Leaf {
                value: *value,
                constant,
                terms: terms.by_ref().take(count).collect(),
            })
            .collect())
    }
}

/// `x <= threshold` as `x < below(threshold)`, for the `x` that LightGBM compares: what lies close to 0 is 0 before.
fn below(threshold: f64) -> f64 {
    if threshold.abs() > ZERO {
        threshold.next_up()
    } else if threshold < 0.0 {
        -ZERO
    } else {
        ZERO.next_up()
    }
}
