//! Random histories of a stream, in virtual time: whatever happens, the tailer hands on what a plain fold of all records
//! needs.
//!
//! The world below is Kinesis as its documentation and its complaints describe it, and its stand-ins at their worst:
//! empty pages in front of records, a lying `MillisBehindLatest`, iterators that expire, closed shards that never end or
//! end too early, listings that are late, throttles, subscriptions that are cut, fall silent or are refused, clocks that
//! disagree, records that are trimmed, a stream that is deleted and made anew, and a server that is restarted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::cursor::{Anchor, Delivery, Page};
use super::lineage::Shard;
use super::pace::Top;
use super::tailer::{Call, Effect, Event, Plan, ReaderId, Survey, Tailer, Vouch};
use crate::aws::{Fault, FaultKind};
use crate::config::StartAt;
use crate::id::{SequenceNumber, ShardId};

const T0: u64 = 1_800_000_000_000;
const RETENTION_MS: u64 = 86_400_000;
const SILENCE_MS: u64 = 40_000;

/// How this world behaves.
#[derive(Debug, Clone)]
struct Habits {
    /// How much quiet time an empty page skips.
    skip_ms: u64,
    page_limit: usize,
    zero_behind: bool,
    spurious_behind: bool,
    never_ends: bool,
    /// One in so many answers is this fault; 0 is never.
    expire: usize,
    throttle: usize,
    fail: usize,
    /// One in so many pages of an open shard lacks the next iterator.
    lose_next: usize,
    /// How far arrival stamps stray.
    skew_ms: u64,
    /// How late listings are.
    listing_late_ms: u64,
    /// The tailer's idea of the service's time is so much early.
    clock_early_ms: u64,
    fan_out: bool,
}

impl Habits {
    fn random(rng: &mut Rng) -> Self {
        let zero_behind = rng.u8(..) < 50;
        let rarely = |rng: &mut Rng| *rng.choice([0, 0, 3, 8, 30].iter()).expect("there are some");
        Self {
            // A stand-in that is never behind has no empty pages in front of records either.
            skip_ms: if zero_behind { u64::MAX / 2 } else { rng.u64(250_000..3_000_000) },
            page_limit: rng.usize(1..5),
            zero_behind,
            spurious_behind: rng.u8(..) < 50,
            never_ends: rng.u8(..) < 50,
            expire: rarely(rng),
            throttle: rarely(rng),
            fail: rarely(rng),
            lose_next: rarely(rng) * 3,
            skew_ms: *rng.choice([0, 500, 2000].iter()).expect("there are some"),
            listing_late_ms: *rng.choice([0, 0, 3000].iter()).expect("there are some"),
            clock_early_ms: rng.u64(0..4000),
            fan_out: rng.bool(),
        }
    }

    /// The same, with nothing that goes wrong.
    fn calm(&self) -> Self {
        Self { expire: 0, throttle: 0, fail: 0, lose_next: 0, ..self.clone() }
    }
}

#[derive(Debug, Clone)]
struct WorldShard {
    id: ShardId,
    parents: Vec<ShardId>,
    created_ms: u64,
    closed_ms: Option<u64>,
    /// Sequence number, arrival, key, version.
    records: Vec<(u64, u64, u8, u64)>,
    /// What is below has been trimmed.
    trimmed: u64,
}

struct World {
    habits: Habits,
    rng: Rng,
    now_ms: u64,
    era: u64,
    gone_until_ms: u64,
    shards: Vec<WorldShard>,
    next: u64,
    reads: usize,
}

impl World {
    fn new(habits: Habits, shards: usize, era: u64, rng: Rng) -> Self {
        let mut world = Self { habits, rng, now_ms: era, era, gone_until_ms: 0, shards: vec![], next: 1, reads: 0 };
        for _ in 0..shards {
            world.add_shard(vec![]);
        }
        world
    }

    fn add_shard(&mut self, parents: Vec<ShardId>) {
        let id = format!("shardId-{:012}", self.shards.len()).parse().expect("a shard id");
        let created_ms = self.now_ms;
        self.shards.push(WorldShard { id, parents, created_ms, closed_ms: None, records: vec![], trimmed: 0 });
    }

    fn open(&self) -> Vec<usize> {
        (0..self.shards.len()).filter(|at| self.shards[*at].closed_ms.is_none()).collect()
    }

    fn put(&mut self, keys: u8) {
        let at = *self.rng.choice(self.open().iter()).expect("a stream has open shards");
        let skew = self.rng.u64(0..=self.habits.skew_ms);
        let (sequence, key) = (self.next, self.rng.u8(0..keys));
        self.next += 1;
        // The version counts up with the sequence number.
        self.shards[at].records.push((sequence, self.now_ms - skew, key, sequence));
    }

    fn split(&mut self) {
        let at = *self.rng.choice(self.open().iter()).expect("a stream has open shards");
        self.shards[at].closed_ms = Some(self.now_ms);
        let parent = self.shards[at].id.clone();
        self.add_shard(vec![parent.clone()]);
        self.add_shard(vec![parent]);
    }

    fn merge(&mut self) {
        let open = self.open();
        if let [.., a, b] = open[..] {
            let parents = [a, b].map(|at| {
                self.shards[at].closed_ms = Some(self.now_ms);
                self.shards[at].id.clone()
            });
            self.add_shard(parents.to_vec());
        }
    }

    /// All but the last record of each shard.
    fn trim(&mut self) {
        for shard in &mut self.shards {
            if let Some((last, ..)) = shard.records.last().copied() {
                shard.records.retain(|(sequence, ..)| *sequence == last);
                shard.trimmed = last;
            }
        }
    }

    fn recreate(&mut self) {
        self.gone_until_ms = self.now_ms + self.rng.u64(0..20_000);
        self.era = self.gone_until_ms;
        let shards = self.rng.usize(1..3);
        self.shards.clear();
        for _ in 0..shards {
            self.add_shard(vec![]);
        }
    }

    /// What a plain fold of all records gives.
    fn fold(&self) -> BTreeMap<u8, u64> {
        let mut newest = BTreeMap::new();
        for (_, _, key, version) in self.shards.iter().flat_map(|shard| &shard.records) {
            let slot = newest.entry(*key).or_insert(0);
            *slot = (*slot).max(*version);
        }
        newest
    }

    fn mishap(&mut self, one_in: usize) -> bool {
        one_in > 0 && self.rng.usize(0..one_in) == 0
    }

    fn checked(&mut self) -> Result<(), Fault> {
        let fault = |kind, message: &str| Err(Fault { kind, message: message.to_owned() });
        if self.now_ms < self.gone_until_ms {
            return fault(FaultKind::NotFound, "no such stream");
        }
        if self.mishap(self.habits.throttle) {
            return fault(FaultKind::Throttled, "too fast");
        }
        if self.mishap(self.habits.fail) {
            return fault(FaultKind::Unavailable, "502");
        }
        Ok(())
    }

    fn survey(&mut self) -> Result<Survey, Fault> {
        self.checked()?;
        let seen_ms = self.now_ms.saturating_sub(self.habits.listing_late_ms);
        let shards = self.shards.iter().filter(|shard| shard.created_ms <= seen_ms.max(self.era)).map(|shard| Shard {
            id: shard.id.clone(),
            parents: shard.parents.clone(),
            closed: shard.closed_ms.is_some_and(|closed_ms| closed_ms <= seen_ms),
        });
        Ok(Survey { era: Some(self.era), retention_ms: RETENTION_MS, shards: shards.collect() })
    }

    fn shard(&self, id: &ShardId) -> Result<&WorldShard, Fault> {
        let fault = || Fault { kind: FaultKind::NotFound, message: "no such shard".to_owned() };
        self.shards.iter().find(|shard| shard.id == *id).ok_or_else(fault)
    }

    /// Where an anchor stands: the last sequence number before it, and the time from which to look.
    fn place(&self, shard: &WorldShard, anchor: &Anchor) -> Result<(u64, u64), Fault> {
        let invalid = |message: &str| Fault { kind: FaultKind::InvalidArgument, message: message.to_owned() };
        let oldest_ms = shard.created_ms.max(self.now_ms.saturating_sub(RETENTION_MS));
        let arrival = |number: u64| {
            let record = shard.records.iter().find(|(sequence, ..)| *sequence >= number);
            record.map_or(self.now_ms, |(_, arrival_ms, ..)| *arrival_ms)
        };
        Ok(match anchor {
            Anchor::TrimHorizon => (shard.trimmed.saturating_sub(1), oldest_ms),
            Anchor::AtTime(at_ms) if *at_ms > self.now_ms => return Err(invalid("in the future")),
            Anchor::AtTime(at_ms) => {
                let first = shard.records.iter().find(|(_, arrival_ms, ..)| arrival_ms >= at_ms);
                let newest = shard.records.last().map_or(0, |(sequence, ..)| *sequence);
                (first.map_or(newest, |(sequence, ..)| sequence - 1), (*at_ms).max(oldest_ms))
            }
            Anchor::At(sequence) | Anchor::After(sequence) => {
                let number: u64 = sequence.as_str().parse().expect("a small number");
                if number < shard.trimmed {
                    return Err(invalid("trimmed"));
                }
                (number - u64::from(matches!(anchor, Anchor::At(_))), arrival(number))
            }
        })
    }

    fn iterator(&mut self, id: &ShardId, anchor: &Anchor) -> Result<String, Fault> {
        self.checked()?;
        let (after, at_ms) = self.place(self.shard(id)?, anchor)?;
        Ok(format!("{}:{id}:{after}:{at_ms}:{}", self.era, self.now_ms))
    }

    fn page(&mut self, iterator: &str) -> Result<Page, Fault> {
        self.reads += 1;
        self.checked()?;
        let parts: Vec<&str> = iterator.split(':').collect();
        let [era, id, after, at_ms, issued_ms] = parts[..] else { unreachable!("an iterator of ours") };
        let number = |text: &str| text.parse::<u64>().expect("a number of ours");
        let invalid = Fault { kind: FaultKind::InvalidArgument, message: "no iterator of this stream".to_owned() };
        if number(era) != self.era {
            return Err(invalid);
        }
        if self.now_ms > number(issued_ms) + 300_000 || self.mishap(self.habits.expire) {
            return Err(Fault { kind: FaultKind::ExpiredIterator, message: "too old".to_owned() });
        }
        let (spurious, lose) = (self.habits.spurious_behind && self.rng.bool(), self.mishap(self.habits.lose_next));
        let shard = self.shard(&id.parse().expect("a shard id"))?;
        let (after, at_ms) = (number(after), number(at_ms));
        let horizon_ms = at_ms.saturating_add(self.habits.skip_ms);
        let rest: Vec<_> = shard.records.iter().filter(|(sequence, ..)| *sequence > after).collect();
        let near = rest.first().is_some_and(|(_, arrival_ms, ..)| *arrival_ms <= horizon_ms);
        let taken = if near { &rest[..rest.len().min(self.habits.page_limit)] } else { &[] };
        let last = taken.last();
        let end_ms = last.map_or(horizon_ms.min(self.now_ms), |(_, arrival_ms, ..)| *arrival_ms);
        let at_tip = rest.len() == taken.len() && (!taken.is_empty() || end_ms >= self.now_ms);
        let ended = at_tip && shard.closed_ms.is_some() && !self.habits.never_ends;
        // Where nothing tells the end of a closed shard from a mistake, there is none.
        let lose = lose && !(self.habits.zero_behind && shard.closed_ms.is_some());
        let behind_ms = match at_tip || self.habits.zero_behind {
            true if spurious && taken.is_empty() && !self.habits.zero_behind => 1500,
            true => 0,
            false => (self.now_ms - end_ms.min(self.now_ms)).max(1),
        };
        let after = last.map_or(after, |(sequence, ..)| *sequence);
        let next = format!("{era}:{id}:{after}:{}:{}", end_ms.max(at_ms), self.now_ms);
        Ok(Page {
            records: taken.iter().map(|record| data(record)).collect(),
            next: (!ended && !lose).then_some(next),
            behind_ms,
        })
    }

    /// What a subscription brings next, and where it stands then.
    fn deliver(&self, id: &ShardId, after: u64) -> Result<(Delivery, u64), Fault> {
        let shard = self.shard(id)?;
        let rest: Vec<_> = shard.records.iter().filter(|(sequence, ..)| *sequence > after).collect();
        let taken = &rest[..rest.len().min(self.habits.page_limit)];
        let after = taken.last().map_or(after, |(sequence, ..)| *sequence);
        let ended = rest.len() == taken.len() && shard.closed_ms.is_some() && !self.habits.never_ends;
        let continuation = number(after + u64::from(taken.is_empty()));
        let records = taken.iter().map(|record| data(record)).collect();
        Ok((Delivery { records, continuation: (!ended).then_some(continuation), behind_ms: 0, ended }, after))
    }
}

fn number(sequence: u64) -> SequenceNumber {
    sequence.to_string().parse().expect("digits")
}

fn data((sequence, arrival_ms, key, version): &(u64, u64, u8, u64)) -> (SequenceNumber, u64, Bytes) {
    (number(*sequence), *arrival_ms, format!("{key}:{version}").into())
}

/// A mistake that others have made, planted between the tailer and the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// An expired iterator is replaced by one at the newest record.
    ExpiredJumpsToNewest,
    /// The children of a split are read from the newest record.
    ChildrenFromNewest,
    /// The records of a page that is not behind are dropped.
    TestsBeforeItProcesses,
    /// The first empty page is taken for the end.
    EmptyPageIsTheEnd,
    /// A subscription that ends begins again at the newest record.
    ResubscribesAtNewest,
}

enum Action {
    Call(ReaderId, ShardId, Call),
    Survey,
    /// A subscription's next event: reader, shard, the last sequence number before it, when it ends.
    Deliver(ReaderId, ShardId, u64, u64),
    Silence(ReaderId),
    Consumer(bool),
    Put,
    Split,
    Merge,
    Trim,
    Recreate,
    Restart,
    Calm,
}

struct Run {
    world: World,
    tailer: Tailer,
    plan: Plan,
    keys: u8,
    planted: Planted,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    actions: HashMap<u64, Action>,
    survey: Option<(u64, u64)>,
    folded: BTreeMap<u8, u64>,
    /// What was there when the instance started, in the same era.
    there: BTreeMap<u8, u64>,
    expired: Option<ReaderId>,
    caught_up: u32,
    ready_too_early: Option<String>,
}

impl Run {
    fn at(&mut self, at_ms: u64, action: Action) -> u64 {
        let id = self.actions.len() as u64 + self.agenda.len() as u64 * 1_000_003 + self.world.rng.u64(..) / 2;
        self.actions.insert(id, action);
        self.agenda.push(Reverse((at_ms, id)));
        id
    }

    fn start(&mut self) {
        // What the instance before had asked dies with it.
        let of_the_world = |action: &Action| {
            use Action::{Calm, Merge, Put, Recreate, Restart, Split, Trim};
            matches!(action, Put | Split | Merge | Trim | Recreate | Restart | Calm)
        };
        self.actions.retain(|_, action| of_the_world(action));
        let seed = self.world.rng.u64(..);
        self.tailer = Tailer::new(self.plan.clone(), Rng::with_seed(seed));
        self.folded.clear();
        // A listing that is late hides a new shard, and what is in it, until later.
        self.there = if self.world.habits.listing_late_ms == 0 { self.world.fold() } else { BTreeMap::new() };
        self.caught_up = 0;
        self.survey = None;
        self.apply(vec![Effect::Survey(Duration::ZERO)]);
        if self.world.habits.fan_out {
            let at = self.world.now_ms + self.world.rng.u64(0..20_000);
            self.at(at, Action::Consumer(true));
        }
    }

    fn event(&mut self, event: Event) {
        let mut lossy = false;
        let event = match event {
            Event::Page(id, Ok(page)) => {
                lossy = page.behind_ms == 0 && self.planted == Planted::TestsBeforeItProcesses;
                let end = self.planted == Planted::EmptyPageIsTheEnd && page.records.is_empty();
                Event::Page(id, Ok(Page { behind_ms: if end { 0 } else { page.behind_ms }, ..page }))
            }
            Event::Page(id, Err(fault)) => {
                self.expired = (fault.kind == FaultKind::ExpiredIterator).then_some(id);
                Event::Page(id, Err(fault))
            }
            event => event,
        };
        let now_ms = self.world.now_ms - self.world.habits.clock_early_ms;
        let mut effects = self.tailer.on(event, now_ms);
        if lossy {
            effects.retain(|effect| !matches!(effect, Effect::HandOn(_)));
        }
        self.apply(effects);
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        let now_ms = self.world.now_ms;
        for effect in effects {
            match effect {
                Effect::Ask { reader, shard, mut call, after } => {
                    let newest = Anchor::AtTime(now_ms - self.world.habits.clock_early_ms);
                    if let Call::Iterator(anchor) = &mut call {
                        let expired = self.expired.take_if(|id| *id == reader).is_some();
                        let child = self.caught_up > 0 && *anchor == Anchor::TrimHorizon;
                        if (expired && self.planted == Planted::ExpiredJumpsToNewest)
                            || (child && self.planted == Planted::ChildrenFromNewest)
                        {
                            *anchor = newest.clone();
                        }
                    }
                    if let Call::Subscribe(anchor @ Anchor::At(_)) = &mut call
                        && self.planted == Planted::ResubscribesAtNewest
                    {
                        *anchor = newest;
                    }
                    let latency = self.world.rng.u64(5..50);
                    let at = now_ms + u64::try_from(after.as_millis()).expect("a short pause") + latency;
                    self.at(at, Action::Call(reader, shard, call));
                }
                Effect::Survey(after) => {
                    let at = now_ms + u64::try_from(after.as_millis()).expect("a short pause") + 5;
                    if self.survey.is_none_or(|(before, _)| at < before) {
                        let id = self.at(at, Action::Survey);
                        self.survey = Some((at, id));
                    }
                }
                Effect::HandOn(records) => {
                    for record in records {
                        let text = String::from_utf8(record.data.to_vec()).expect("text");
                        let (key, version) = text.split_once(':').expect("a key and a version");
                        let (key, version): (u8, u64) =
                            (key.parse().expect("a key"), version.parse().expect("a version"));
                        let slot = self.folded.entry(key).or_insert(0);
                        *slot = version.max(*slot);
                    }
                }
                Effect::CaughtUp => {
                    self.caught_up += 1;
                    let missing = |(key, version): &(&u8, &u64)| self.folded.get(key).is_none_or(|have| have < version);
                    if let Some(slot) = self.there.iter().find(missing) {
                        self.ready_too_early = Some(format!("caught up without {slot:?}"));
                    }
                }
                Effect::Register => {
                    let at = now_ms + self.world.rng.u64(500..5_000);
                    self.at(at, Action::Consumer(true));
                }
                Effect::Drop(..) | Effect::Gap(_) | Effect::Trouble(_) | Effect::Crowded(_) => {}
            }
        }
    }

    fn act(&mut self, id: u64, action: Action) {
        match action {
            Action::Survey => {
                if self.survey.take_if(|(_, wanted)| *wanted == id).is_some() {
                    let survey = self.world.survey();
                    self.event(Event::Surveyed(survey));
                }
            }
            Action::Call(reader, shard, call) => {
                if self.tailer.shard(reader).is_none_or(|read| *read != shard) {
                    return;
                }
                match call {
                    Call::Iterator(anchor) => {
                        let answer = self.world.iterator(&shard, &anchor);
                        self.event(Event::Iterator(reader, answer));
                    }
                    Call::Records(iterator) => {
                        let answer = self.world.page(&iterator);
                        self.event(Event::Page(reader, answer));
                    }
                    Call::Subscribe(anchor) => {
                        let opened = self.world.checked().and_then(|()| {
                            let in_use = self.world.mishap(self.world.habits.fail);
                            if in_use { Err(Fault::not_ready("ResourceInUse")) } else { Ok(()) }
                        });
                        let opened = opened.and_then(|()| self.world.place(self.world.shard(&shard)?, &anchor));
                        match opened {
                            Ok((after, _)) => {
                                let until = self.world.now_ms + self.world.rng.u64(5_000..300_000);
                                self.at(self.world.now_ms + 5, Action::Deliver(reader, shard, after, until));
                            }
                            Err(fault) => self.event(Event::Unsubscribed(reader, Err(fault))),
                        }
                    }
                }
            }
            Action::Deliver(reader, shard, after, until_ms) => {
                if self.tailer.shard(reader).is_none_or(|read| *read != shard) {
                    return;
                }
                let now_ms = self.world.now_ms;
                if now_ms < self.world.gone_until_ms || self.world.mishap(self.world.habits.fail * 5) {
                    let silent = self.world.rng.bool();
                    if silent {
                        self.at(now_ms + SILENCE_MS, Action::Silence(reader));
                    } else {
                        self.event(Event::Unsubscribed(reader, Err(Fault::unavailable("cut"))));
                    }
                } else if now_ms >= until_ms {
                    self.event(Event::Unsubscribed(reader, Ok(())));
                } else {
                    match self.world.deliver(&shard, after) {
                        Ok((delivery, after)) => {
                            let pause_ms =
                                if delivery.records.is_empty() { self.world.rng.u64(200..5_000) } else { 50 };
                            self.event(Event::Delivered(reader, delivery));
                            let next = now_ms + pause_ms;
                            self.at(next, Action::Deliver(reader, shard, after, until_ms));
                        }
                        Err(fault) => self.event(Event::Unsubscribed(reader, Err(fault))),
                    }
                }
            }
            Action::Silence(reader) => self.event(Event::Unsubscribed(reader, Err(Fault::unavailable("silent")))),
            Action::Consumer(is_there) => self.event(Event::Consumer(is_there)),
            Action::Put => self.world.put(self.keys),
            Action::Split => self.world.split(),
            Action::Merge => self.world.merge(),
            Action::Trim => {
                self.world.trim();
                self.there.clear();
            }
            Action::Recreate => {
                self.world.recreate();
                self.there.clear();
            }
            Action::Restart => self.start(),
            Action::Calm => self.world.habits = self.world.habits.calm(),
        }
    }

    fn until(&mut self, end_ms: u64) {
        while let Some(Reverse((at_ms, id))) = self.agenda.peek().copied().filter(|Reverse((at, _))| *at <= end_ms) {
            self.agenda.pop();
            let Some(action) = self.actions.remove(&id) else { continue };
            self.world.now_ms = self.world.now_ms.max(at_ms);
            self.act(id, action);
        }
        self.world.now_ms = end_ms;
    }
}

/// Plays one history. Answers what is wrong with its end.
fn history(seed: u64, planted: Planted) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let habits = Habits::random(&mut rng);
    // One slot is found from the last records alone; many need the whole stream.
    let (start, keys) = if rng.bool() { (StartAt::Last, 1) } else { (StartAt::TrimHorizon, 5) };
    let plan = Plan {
        start,
        lookback_ms: 0,
        top: Top::new(Some(Duration::from_secs(rng.u64(1..8))), None),
        vouch: Vouch::Nothing,
    };
    let age_ms = *rng.choice([60_000, 3_600_000, 80_000_000].iter()).expect("there are some");
    let world = World::new(habits, rng.usize(1..4), T0 - age_ms, rng.fork());
    let mut run = Run {
        tailer: Tailer::new(plan.clone(), rng.fork()),
        world,
        plan,
        keys,
        planted,
        agenda: BinaryHeap::new(),
        actions: HashMap::new(),
        survey: None,
        folded: BTreeMap::new(),
        there: BTreeMap::new(),
        expired: None,
        caught_up: 0,
        ready_too_early: None,
    };
    for _ in 0..rng.usize(0..20) {
        let at = T0 - rng.u64(0..age_ms);
        run.at(at, Action::Put);
    }
    for _ in 0..rng.usize(0..4) {
        let at = T0 - rng.u64(0..age_ms);
        run.at(at, if rng.bool() { Action::Split } else { Action::Merge });
    }
    run.until(T0);
    run.start();
    let minutes = rng.u64(1..4);
    let sometime = |rng: &mut Rng| T0 + rng.u64(0..minutes * 60_000);
    for _ in 0..rng.usize(0..25) {
        let at = sometime(&mut rng);
        run.at(at, Action::Put);
    }
    for _ in 0..rng.usize(0..5) {
        let at = sometime(&mut rng);
        run.at(at, if rng.bool() { Action::Split } else { Action::Merge });
    }
    for (one_in, action) in [(6, Action::Restart), (8, Action::Recreate)] {
        if rng.usize(0..one_in) == 0 {
            let at = sometime(&mut rng);
            run.at(at, action);
        }
    }
    if keys == 1 && rng.usize(0..4) == 0 {
        let at = sometime(&mut rng);
        run.at(at, Action::Trim);
    }
    // Faults end some time, and what was put before is then known to all; a stream of quiet hours takes a minute a shard.
    let calm_ms = T0 + minutes * 60_000 + 20_000;
    run.at(calm_ms, Action::Calm);
    let mut end_ms = calm_ms + 180_000;
    run.until(end_ms);
    if run.caught_up == 0 {
        // Quiet hours take their time, in one shard after the other.
        end_ms += 1_200_000;
        run.until(end_ms);
    }

    if let Some(early) = run.ready_too_early {
        return Err(early);
    }
    if run.caught_up != 1 {
        return Err(format!("caught up {} times", run.caught_up));
    }
    let expected = run.world.fold();
    let wrong = expected.iter().find(|(key, version)| run.folded.get(key) != Some(version));
    if let Some((key, version)) = wrong {
        return Err(format!("slot {key} shows {:?} instead of {version}", run.folded.get(key)));
    }
    let (shards, seconds) = (run.world.shards.len(), usize::try_from((end_ms - T0) / 1000).expect("minutes"));
    if run.world.reads > (5 * seconds + 20) * shards.max(4) {
        return Err(format!("{} reads of {shards} shards in {seconds} s", run.world.reads));
    }
    Ok(())
}

/// Plays many histories, and answers the first that ends wrong.
fn play(seeds: std::ops::Range<u64>, planted: Planted) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| history(seed, planted).err().map(|wrong| (seed, wrong)))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may be told to play more")]
fn every_history_ends_with_what_a_plain_fold_of_all_records_gives() {
    let histories = std::env::var("HOTSERVE_TEST_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let half = histories / 2;
    let wrong = std::thread::scope(|scope| {
        let first = scope.spawn(move || play(0..half, Planted::Nothing));
        let second = play(half..histories, Planted::Nothing);
        first.join().expect("no panic").or(second)
    });
    assert_eq!(wrong, None, "the seed of the history, and what is wrong at its end");
}

#[test]
fn the_mistakes_of_others_are_caught() {
    for planted in [
        Planted::ExpiredJumpsToNewest,
        Planted::ChildrenFromNewest,
        Planted::TestsBeforeItProcesses,
        Planted::EmptyPageIsTheEnd,
        Planted::ResubscribesAtNewest,
    ] {
        assert!(play(0..2_000, planted).is_some(), "{planted:?} goes unnoticed");
    }
}
