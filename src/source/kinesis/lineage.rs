//! Which shards to read when: parents to their end, then their children. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::ShardId;

/// A shard as `ListShards` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// The shard or the two shards that it was made from; they may no longer be listed.
    pub parents: Vec<ShardId>,
    /// Whether a split or merge has closed it.
    pub closed: bool,
}

/// What is known of the shards of one era of the stream.
#[derive(Debug, Default)]
pub struct Lineage {
    listed: BTreeMap<ShardId, Shard>,
    /// Read now, or sought in now.
    reading: BTreeSet<ShardId>,
    /// Read to the end, or closed before the server began.
    past: BTreeSet<ShardId>,
    /// Of the past ones, those whose last record has been looked for.
    sought: BTreeSet<ShardId>,
}

impl Lineage {
    /// The first listing: the open shards are to be sought in and followed; the closed ones are the past.
    pub fn begin(&mut self, listed: Vec<Shard>) -> Vec<ShardId> {
        self.list(listed);
        let (closed, open): (Vec<_>, Vec<_>) = self.listed.values().partition(|shard| shard.closed);
        let open: Vec<_> = open.into_iter().map(|shard| shard.id.clone()).collect();
        self.past.extend(closed.into_iter().map(|shard| shard.id.clone()));
        self.reading.extend(open.iter().cloned());
        open
    }

    /// A listing after an interruption: answers the shards that were being read, with those that are to be read from
    /// their beginning now.
    pub fn resume(&mut self, listed: Vec<Shard>) -> Vec<ShardId> {
        self.list(listed);
        self.reading.retain(|shard| self.listed.contains_key(shard));
        self.start_ready();
        self.reading.iter().cloned().collect()
    }

    /// A later listing: answers the shards that are to be read from their beginning now.
    pub fn update(&mut self, listed: Vec<Shard>) -> Vec<ShardId> {
        self.list(listed);
        self.start_ready()
    }

    /// A shard has been read to its end: answers its children whose parents have all been.
    pub fn end(&mut self, shard: &ShardId) -> Vec<ShardId> {
        self.reading.remove(shard);
        self.past.insert(shard.clone());
        self.start_ready()
    }

    /// Nothing was found in a shard: answers the parents whose last record is to be looked for instead.
    pub fn parents_to_seek(&mut self, shard: &ShardId) -> Vec<ShardId> {
        let parents = self.listed.get(shard).map(|shard| shard.parents.clone()).unwrap_or_default();
        let past = parents.into_iter().filter(|parent| self.listed.contains_key(parent) && self.past.contains(parent));
        past.filter(|parent| self.sought.insert(parent.clone())).collect()
    }

    /// Whether the last listing has the shard, and as open.
    pub fn is_open(&self, shard: &ShardId) -> bool {
        self.listed.get(shard).is_some_and(|shard| !shard.closed)
    }

    /// Whether the last listing has the shard, and as closed.
    pub fn is_closed(&self, shard: &ShardId) -> bool {
        self.listed.get(shard).is_some_and(|shard| shard.closed)
    }

    /// The parents of a shard.
    pub fn parents(&self, shard: &ShardId) -> &[ShardId] {
        self.listed.get(shard).map_or(&[], |shard| &shard.parents)
    }

    fn list(&mut self, listed: Vec<Shard>) {
        self.listed = listed.into_iter().map(|shard| (shard.id.clone(), shard)).collect();
        // What is not listed any more has expired: nothing can be asked of it.
        self.past.retain(|shard| self.listed.contains_key(shard));
        self.sought.retain(|shard| self.listed.contains_key(shard));
    }

    fn start_ready(&mut self) -> Vec<ShardId> {
        let is_over = |parent: &ShardId| self.past.contains(parent) || !self.listed.contains_key(parent);
        let ready: Vec<_> = self
            .listed
            .values()
            .filter(|shard| !self.reading.contains(&shard.id) && !self.past.contains(&shard.id))
            .filter(|shard| shard.parents.iter().all(is_over))
            .map(|shard| shard.id.clone())
            .collect();
        self.reading.extend(ready.iter().cloned());
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ShardId {
        format!("shardId-{number}").parse().expect("a shard id")
    }

    fn shard(number: u8, parents: &[u8], closed: bool) -> Shard {
        Shard { id: id(number), parents: parents.iter().map(|parent| id(*parent)).collect(), closed }
    }

    #[test]
    fn children_wait_for_all_their_parents() {
        let mut lineage = Lineage::default();
        assert_eq!(lineage.begin(vec![shard(0, &[], false), shard(1, &[], false)]), [id(0), id(1)]);
        // 0 and 1 are merged into 2.
        let merged = vec![shard(0, &[], true), shard(1, &[], true), shard(2, &[0, 1], false)];
        assert!(lineage.update(merged).is_empty());
        assert!(lineage.end(&id(0)).is_empty());
        assert_eq!(lineage.end(&id(1)), [id(2)]);
        assert!(lineage.end(&id(1)).is_empty(), "each is started once");
    }

    #[test]
    fn a_whole_generation_that_came_and_went_between_two_listings_is_read_in_order() {
        let mut lineage = Lineage::default();
        lineage.begin(vec![shard(0, &[], false)]);
        let listed = vec![shard(0, &[], true), shard(1, &[0], true), shard(2, &[0], false), shard(3, &[1], false)];
        assert!(lineage.update(listed).is_empty());
        assert_eq!(lineage.end(&id(0)), [id(1), id(2)]);
        assert_eq!(lineage.end(&id(1)), [id(3)]);
    }

    #[test]
    fn what_was_closed_during_an_interruption_is_read_to_its_end_first() {
        let mut lineage = Lineage::default();
        lineage.begin(vec![shard(0, &[], false), shard(1, &[], false)]);
        let listed = vec![shard(0, &[], true), shard(1, &[], false), shard(2, &[0], false), shard(3, &[], false)];
        assert_eq!(lineage.resume(listed), [id(0), id(1), id(3)]);
        assert_eq!(lineage.end(&id(0)), [id(2)]);
    }

    #[test]
    fn of_a_stream_made_anew_everything_is_read_from_its_roots() {
        let mut lineage = Lineage::default();
        let listed = vec![shard(0, &[], true), shard(1, &[0], false), shard(2, &[0], false)];
        assert_eq!(lineage.update(listed), [id(0)]);
        assert_eq!(lineage.end(&id(0)), [id(1), id(2)]);
    }

    #[test]
    fn a_parent_that_has_expired_holds_nobody_up() {
        let mut lineage = Lineage::default();
        assert_eq!(lineage.begin(vec![shard(5, &[1, 2], false)]), [id(5)]);
        assert_eq!(lineage.update(vec![shard(5, &[1, 2], true), shard(6, &[3], false)]), [id(6)]);
    }

    #[test]
    fn an_empty_shard_sends_the_seek_to_its_parents_once() {
        let mut lineage = Lineage::default();
        let listed = vec![shard(0, &[], true), shard(1, &[0], true), shard(2, &[1], false), shard(3, &[1], false)];
        assert_eq!(lineage.begin(listed), [id(2), id(3)]);
        assert_eq!(lineage.parents_to_seek(&id(2)), [id(1)]);
        assert!(lineage.parents_to_seek(&id(3)).is_empty(), "the same parent");
        assert_eq!(lineage.parents_to_seek(&id(1)), [id(0)]);
        assert!(lineage.parents_to_seek(&id(0)).is_empty());
    }
}
