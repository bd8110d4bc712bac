//! Trees whose leaves are linear models of some features (`linear_tree`).

use super::{ZERO, malformed};
use crate::LoadError;
use crate::forest::Forest;

/// How many trees are asked for their leaves before these are added up: it bounds what a batch takes.
const TREES: usize = 1024;

/// How many rows are.
const BLOCK: usize = 64;

/// A leaf as it was read.
#[derive(Debug)]
pub(super) struct Leaf {
    /// The answer where one of its features is missing.
    pub(super) value: f64,
    pub(super) constant: f64,
    /// Features with their coefficients, in the order of the additions.
    pub(super) terms: Vec<(u32, f64)>,
}

/// Linear trees that follow each other in the file.
#[derive(Debug)]
pub(super) struct LinearTrees {
    features: usize,
    classes: usize,
    /// Answers the number of each tree's leaf, each tree in a column of its own.
    finder: Option<Forest<f64>>,
    trees: Vec<LinearTree>,
    leaves: Vec<LinearLeaf>,
    terms: Vec<(u32, f64)>,
}

#[derive(Debug, Clone, Copy)]
struct LinearTree {
    class: usize,
    /// Where its leaves start.
    leaves: usize,
}

#[derive(Debug, Clone, Copy)]
struct LinearLeaf {
    value: f64,
    constant: f64,
    from: u32,
    end: u32,
}

impl LinearTrees {
    pub(super) fn new(features: usize, classes: usize) -> Self {
        Self { features, classes, finder: None, trees: Vec::new(), leaves: Vec::new(), terms: Vec::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.trees.len() >= TREES
    }

    pub(super) fn push(&mut self, class: usize, leaves: Vec<Leaf>) -> Result<(), LoadError> {
        self.trees.push(LinearTree { class, leaves: self.leaves.len() });
        let place = |terms: &[(u32, f64)]| {
            u32::try_from(terms.len()).map_err(|_| malformed("there are too many coefficients of linear trees"))
        };
        for leaf in leaves {
            let from = place(&self.terms)?;
            self.terms.extend(leaf.terms);
            let end = place(&self.terms)?;
            self.leaves.push(LinearLeaf { value: leaf.value, constant: leaf.constant, from, end });
        }
        Ok(())
    }

    /// Ends the gathering: `finder` has the same trees.
    pub(super) fn with(mut self, finder: Forest<f64>) -> Self {
        self.trees.shrink_to_fit();
        self.leaves.shrink_to_fit();
        self.terms.shrink_to_fit();
        self.finder = Some(finder);
        self
    }

    /// Adds each row's leaves to its margins. `prepared` is what the trees compare, `rows` what the leaves reckon with.
    pub(super) fn add_margins(&self, prepared: &[f64], rows: &[f64], margins: &mut [f64]) {
        let Some(finder) = &self.finder else { return };
        let width = self.features.max(1);
        let blocks = prepared.chunks(width * BLOCK).zip(rows.chunks(width * BLOCK));
        for ((prepared, rows), margins) in blocks.zip(margins.chunks_mut(self.classes.max(1) * BLOCK)) {
            let mut numbers = vec![0.0; prepared.len() / width * self.trees.len()];
            finder.add_margins(prepared, &mut numbers);
            let numbers = numbers.chunks_exact(self.trees.len().max(1));
            let rows = rows.chunks_exact(width).zip(margins.chunks_exact_mut(self.classes.max(1)));
            for (numbers, (row, margins)) in numbers.zip(rows) {
                for (tree, number) in self.trees.iter().zip(numbers) {
                    if let (Some(leaf), Some(margin)) =
                        (self.leaves.get(tree.leaves + *number as usize), margins.get_mut(tree.class))
                    {
                        *margin += self.answer(leaf, row);
                    }
                }
            }
        }
    }

    fn answer(&self, leaf: &LinearLeaf, row: &[f64]) -> f64 {
        let mut answer = leaf.constant;
        for (feature, coefficient) in self.terms.get(leaf.from as usize..leaf.end as usize).unwrap_or_default() {
            let x = row.get(*feature as usize).copied().unwrap_or(f64::NAN);
            if x.is_nan() {
                return leaf.value;
            }
            answer += coefficient * if x.abs() <= ZERO { 0.0 } else { x };
        }
        answer
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.finder.as_ref().map_or(0, Forest::memory_bytes)
            + self.trees.capacity() * size_of::<LinearTree>()
            + self.leaves.capacity() * size_of::<LinearLeaf>()
            + self.terms.capacity() * size_of::<(u32, f64)>()
    }
}
