//! The tailer's decisions, for all shards of the stream: an event goes in, effects come out. Pure but for the dice, so
//! that histories can be tried by the thousand (`simulation.rs`).
//!
//! ```text
//!   Survey ──► Lineage: which shards ──► Reader a shard ── Cursor: what to ask next
//!     ▲                                     │   ▲          Pace: when
//!     │                                  Ask│   │Answer
//!     └── shell: asks AWS, waits, hands on ◄┘   └──
//! ```
//!
//! **Invariant:** each reader has one call under way, or one subscription; an answer to another is not heard.
//! **Invariant:** `CaughtUp` comes once, after every record that was there at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;

use super::cursor::{Anchor, Ask, Cursor, Delivery, Page, Range, Start, Step};
use super::lineage::{Lineage, Shard};
use super::pace::{Load, Pace, Top};
use crate::aws::{Fault, FaultKind};
use crate::config::StartAt;
use crate::id::{Position, SequenceNumber, ShardId};
use crate::source::Record;

/// How often to look for new shards, and for a stream made anew.
const RELIST: Duration = Duration::from_secs(30);
/// The same after the end of a shard: soon, for a split is followed by its children; not at once, for some shards end
/// again and again.
const RELIST_SOON: Duration = Duration::from_millis(200);
/// The longest pause after a fault that passes by itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause after a fault that a person has to mend.
const LONGEST_PAUSE_FOR_PEOPLE: Duration = Duration::from_secs(30);
/// So many refusals in a row, each met with another place to begin, and the stream is not what it was.
const REFUSALS: u32 = 8;
/// What a manifest cannot vouch for: what came while it was being read, and clocks that disagree.
const MANIFEST_WINDOW_MS: u64 = 70_000;
/// `SubscribeToShard` may be called once a second for a consumer and shard.
const BETWEEN_SUBSCRIPTIONS_MS: u64 = 1_000;

/// Tells the readers of a shard, one after the other, apart.
pub type ReaderId = u64;

/// What the tailer is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to begin.
    pub start: StartAt,
    /// With [`StartAt::Last`], how far back to read at least.
    pub lookback_ms: u64,
    /// The fastest polls.
    pub top: Top,
    /// What says what is older than the start.
    pub vouch: Vouch,
}

/// Whether something other than the stream says what was published before the start: the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouch {
    /// Nothing does: the look-back has to be complete before the start is over.
    Nothing,
    /// It is being read.
    Pending,
    /// It has been handed on: the newest minute of the stream is enough, and the look-back goes on behind it.
    Folded,
}

/// The stream as it was found.
#[derive(Debug, Clone)]
pub struct Survey {
    /// When it was created, in milliseconds since 1970; unknown where that may not be asked.
    pub era: Option<u64>,
    /// How long it keeps records.
    pub retention_ms: u64,
    /// Its shards.
    pub shards: Vec<Shard>,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The survey is over.
    Surveyed(Result<Survey, Fault>),
    /// The answer to [`Call::Iterator`].
    Iterator(ReaderId, Result<String, Fault>),
    /// The answer to [`Call::Records`].
    Page(ReaderId, Result<Page, Fault>),
    /// A subscription brought something.
    Delivered(ReaderId, Delivery),
    /// A subscription is over.
    Unsubscribed(ReaderId, Result<(), Fault>),
    /// Whether there is a consumer to subscribe with.
    Consumer(bool),
    /// News of the manifest.
    Vouched(Vouch),
}

/// What to ask of Kinesis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Get an iterator there.
    Iterator(Anchor),
    /// Get the records at this iterator.
    Records(String),
    /// Subscribe from there on.
    Subscribe(Anchor),
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    /// Ask this of this shard, after a pause.
    Ask {
        /// Who wants to know.
        reader: ReaderId,
        /// Of which shard.
        shard: ShardId,
        /// What.
        call: Call,
        /// The pause.
        after: Duration,
    },
    /// Look at the whole stream no later than in this time.
    Survey(Duration),
    /// Hand these records on.
    HandOn(Vec<Record>),
    /// Everything that was there at the start has been handed on.
    CaughtUp,
    /// A reader is no more: what it asked is not wanted.
    Drop(ReaderId, ShardId),
    /// Records may have been trimmed before they were read.
    Gap(String),
    /// Something is wrong: say it.
    Trouble(Fault),
    /// Too many instances poll the shard.
    Crowded(f64),
    /// The consumer is not there any more: register it again.
    Register,
}

/// Reads one shard.
struct Reader {
    shard: ShardId,
    cursor: Cursor,
    pace: Pace,
    load: Load,
    refusals: u32,
    /// Listed as closed: the answer to the next call, and no earlier one, shows its end.
    closing: bool,
    /// When to subscribe, in the service's milliseconds; until then it polls.
    subscribe_at_ms: u64,
    subscribed: bool,
}

/// Where a shard's reader stands: a reader that begins again goes on from there.
#[derive(Debug, Clone, Default)]
struct Place {
    last: Option<SequenceNumber>,
    arrival_ms: u64,
}

/// How the readers fare: of those that poll, the worst.
#[derive(Debug, Default)]
pub struct Summary {
    /// The time between polls.
    pub interval: Duration,
    /// The share of throttled reads.
    pub throttled: f64,
    /// How many instances seem to read the shard; 0 while nothing is throttled.
    pub readers: f64,
    /// How many shards are subscribed to.
    pub subscribed: usize,
}

/// What the tailer knows.
pub struct Tailer {
    plan: Plan,
    rng: Rng,
    era: Option<u64>,
    oldest_ms: u64,
    lineage: Lineage,
    places: BTreeMap<ShardId, Place>,
    readers: BTreeMap<ReaderId, Reader>,
    next_reader: ReaderId,
    /// Shards whose last record is being looked for.
    seeking: BTreeSet<ShardId>,
    /// Of these, the ones whose newest part has not been read yet.
    unread: BTreeSet<ShardId>,
    /// Shards that said they have ended, or are not there, until the listing agrees.
    ended: BTreeSet<ShardId>,
    begun: bool,
    /// The stream is not there: nobody reads.
    suspended: bool,
    caught_up: bool,
    consumer: bool,
    /// When the manifest was last known to be handed on.
    vouched_at_ms: u64,
    /// The pause after surveys that failed, one after the other.
    surveys: Pace,
    /// The pause after shards that were lost, one after the other.
    losses: Pace,
}

impl Tailer {
    /// A tailer that knows nothing yet; it begins with the answer to a survey.
    pub fn new(plan: Plan, mut rng: Rng) -> Self {
        let surveys = Pace::new(plan.top, &mut rng);
        Self {
            plan,
            rng,
            era: None,
            oldest_ms: 0,
            lineage: Lineage::default(),
            places: BTreeMap::new(),
            readers: BTreeMap::new(),
            next_reader: 0,
            seeking: BTreeSet::new(),
            unread: BTreeSet::new(),
            ended: BTreeSet::new(),
            begun: false,
            suspended: false,
            caught_up: false,
            consumer: false,
            vouched_at_ms: 0,
            losses: surveys.clone(),
            surveys,
        }
    }

    /// How many shards are being read.
    pub fn reading(&self) -> usize {
        self.readers.len()
    }

    /// The shard of a reader.
    pub fn shard(&self, reader: ReaderId) -> Option<&ShardId> {
        self.readers.get(&reader).map(|reader| &reader.shard)
    }

    /// How the readers fare.
    pub fn load(&self) -> Summary {
        let mut load = Summary::default();
        for reader in self.readers.values() {
            if reader.subscribed {
                load.subscribed += 1;
                continue;
            }
            load.interval = load.interval.max(reader.pace.interval());
            load.throttled = load.throttled.max(reader.load.ratio());
            load.readers = load.readers.max(reader.load.readers());
        }
        load
    }

    /// Takes in an event. `now_ms` is the service's time, in milliseconds since 1970.
    pub fn on(&mut self, event: Event, now_ms: u64) -> Vec<Effect> {
        let mut effects = vec![];
        match event {
            Event::Surveyed(Ok(survey)) => self.on_survey(survey, now_ms, &mut effects),
            Event::Surveyed(Err(fault)) => self.on_survey_fault(fault, &mut effects),
            Event::Iterator(id, answer) => match (self.readers.get_mut(&id), answer) {
                (None, _) => {}
                (Some(reader), Ok(iterator)) => {
                    reader.cursor.on_iterator(iterator);
                    self.ask(id, Duration::ZERO, now_ms, &mut effects);
                }
                (Some(_), Err(fault)) => self.on_fault(id, fault, now_ms, &mut effects),
            },
            Event::Page(id, answer) => match (self.readers.get_mut(&id), answer) {
                (None, _) => {}
                (Some(reader), Ok(page)) => {
                    reader.refusals = 0;
                    reader.pace.on_success();
                    self.losses.on_success();
                    reader.load.note(now_ms, false);
                    let step = reader.cursor.on_page(page, now_ms);
                    let doubtful = step.doubtful;
                    if self.on_step(id, step, now_ms, &mut effects) {
                        if doubtful {
                            effects.push(Effect::Survey(RELIST_SOON));
                        }
                        let interval_ms = self.interval_ms();
                        let Some(reader) = self.readers.get_mut(&id) else { return effects };
                        let pause = reader.pace.pause(reader.cursor.is_behind(interval_ms), &mut self.rng);
                        let pause = if doubtful { pause.max(2 * RELIST_SOON) } else { pause };
                        self.ask(id, pause, now_ms, &mut effects);
                    }
                }
                (Some(_), Err(fault)) => self.on_fault(id, fault, now_ms, &mut effects),
            },
            Event::Delivered(id, delivery) => {
                if let Some(reader) = self.readers.get_mut(&id) {
                    reader.refusals = 0;
                    reader.pace.on_success();
                    self.losses.on_success();
                    let step = reader.cursor.on_delivery(delivery, now_ms);
                    self.on_step(id, step, now_ms, &mut effects);
                    if let Some(reader) = self.readers.get_mut(&id).filter(|reader| reader.closing) {
                        reader.cursor.close();
                    }
                }
            }
            Event::Unsubscribed(id, why) => self.on_unsubscribed(id, why, now_ms, &mut effects),
            // A reader changes over when its next call is due.
            Event::Consumer(is_there) => self.consumer = is_there,
            Event::Vouched(vouch) => {
                self.plan.vouch = vouch;
                self.vouched_at_ms = now_ms;
                self.check_caught_up(&mut effects);
            }
        }
        effects
    }

    fn on_survey(&mut self, survey: Survey, now_ms: u64, effects: &mut Vec<Effect>) {
        self.surveys.on_success();
        // An era that could not be asked for stays unknown, and one that cannot be any more is taken to be the one before:
        // nothing is read anew because of a policy.
        let era = match (self.era, survey.era) {
            (Some(Position::UNKNOWN_ERA), _) | (None, None) => Position::UNKNOWN_ERA,
            (Some(before), None) => before,
            (_, Some(era)) => era,
        };
        let anew = self.era.is_some_and(|before| before != era);
        self.era = Some(era);
        self.oldest_ms = now_ms.saturating_sub(survey.retention_ms).max(era);
        if anew {
            effects.push(Effect::Gap("the stream was made anew: it is read from its beginning".to_owned()));
            self.drop_readers(effects);
            self.lineage = Lineage::default();
            self.places.clear();
        }
        let resumed = std::mem::take(&mut self.suspended);
        if !self.begun || (!self.caught_up && (anew || resumed)) {
            self.begin(survey.shards, now_ms, effects);
        } else if resumed && !anew {
            for shard in self.lineage.resume(survey.shards) {
                self.follow_on(shard, now_ms, effects);
            }
        } else {
            self.relist(survey.shards, now_ms, effects);
        }
        let listed = |shard: &ShardId| self.lineage.is_open(shard) || self.lineage.is_closed(shard);
        self.places.retain(|shard, _| listed(shard));
        effects.push(Effect::Survey(self.jittered(RELIST)));
        self.check_caught_up(effects);
    }

    fn begin(&mut self, listed: Vec<Shard>, now_ms: u64, effects: &mut Vec<Effect>) {
        self.begun = true;
        self.drop_readers(effects);
        self.lineage = Lineage::default();
        for shard in self.lineage.begin(listed) {
            self.seek(shard, false, now_ms, effects);
        }
    }

    fn relist(&mut self, listed: Vec<Shard>, now_ms: u64, effects: &mut Vec<Effect>) {
        let mut start = self.lineage.update(listed);
        for shard in std::mem::take(&mut self.ended) {
            if self.lineage.is_open(&shard) {
                // Some answers lack the next iterator although the shard goes on.
                self.follow_on(shard, now_ms, effects);
            } else {
                start.extend(self.lineage.end(&shard));
            }
        }
        for reader in self.readers.values_mut() {
            reader.closing |= self.lineage.is_closed(&reader.shard);
        }
        for shard in start {
            self.spawn(shard, Start::Follow(Anchor::TrimHorizon), now_ms, effects);
        }
    }

    fn on_survey_fault(&mut self, fault: Fault, effects: &mut Vec<Effect>) {
        let pause = self.surveys.on_fault(longest_pause(fault.kind), &mut self.rng);
        if fault.kind == FaultKind::NotFound {
            self.suspended = true;
            self.drop_readers(effects);
        }
        effects.push(Effect::Trouble(fault));
        effects.push(Effect::Survey(pause));
    }

    /// Looks for the last record of a shard, as far back as the plan says.
    fn seek(&mut self, shard: ShardId, history: bool, now_ms: u64, effects: &mut Vec<Effect>) {
        let (window_ms, widen) = match self.plan.start {
            StartAt::Last if self.plan.vouch == Vouch::Nothing => (self.plan.lookback_ms, true),
            StartAt::Last => {
                let since_ms =
                    if self.plan.vouch == Vouch::Folded { now_ms.saturating_sub(self.vouched_at_ms) } else { 0 };
                (self.plan.lookback_ms.max(MANIFEST_WINDOW_MS.saturating_add(since_ms)), true)
            }
            StartAt::TrimHorizon => (u64::MAX, true),
            StartAt::AtTimestamp(at_ms) => (now_ms.saturating_sub(at_ms), false),
            StartAt::Latest => (0, false),
        };
        self.seeking.insert(shard.clone());
        if !history {
            self.unread.insert(shard.clone());
        }
        let range = Range { now_ms, window_ms, widen, oldest_ms: self.oldest_ms, history };
        self.spawn(shard, Start::Seek(range), now_ms, effects);
    }

    /// Goes on behind the last record that was handed on.
    fn follow_on(&mut self, shard: ShardId, now_ms: u64, effects: &mut Vec<Effect>) {
        let last = self.places.get(&shard).and_then(|place| place.last.clone());
        self.spawn(shard, Start::Follow(last.map_or(Anchor::TrimHorizon, Anchor::After)), now_ms, effects);
    }

    fn spawn(&mut self, shard: ShardId, start: Start, now_ms: u64, effects: &mut Vec<Effect>) {
        // What a shard's ancestors had is older than all that it has.
        let arrival = |shard: &ShardId| self.places.get(shard).map_or(0, |place| place.arrival_ms);
        let floor_ms = self.lineage.parents(&shard).iter().map(arrival).max().unwrap_or(0).max(arrival(&shard));
        let era = self.era.unwrap_or(Position::UNKNOWN_ERA);
        let id = self.next_reader;
        self.next_reader += 1;
        let reader = Reader {
            cursor: Cursor::new(shard.clone(), era, floor_ms, start),
            pace: Pace::new(self.plan.top, &mut self.rng),
            load: Load::default(),
            refusals: 0,
            closing: self.lineage.is_closed(&shard),
            subscribe_at_ms: 0,
            subscribed: false,
            shard,
        };
        self.readers.insert(id, reader);
        self.ask(id, Duration::ZERO, now_ms, effects);
    }

    fn ask(&mut self, id: ReaderId, after: Duration, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        if reader.closing {
            // Known before the call: what the shard was given before it closed is in the answer, or was in one before.
            reader.cursor.close();
        }
        let ask = reader.cursor.ask();
        reader.subscribed =
            self.consumer && !reader.cursor.is_seeking() && now_ms >= reader.subscribe_at_ms && ask != Ask::Done;
        let call = match ask {
            _ if reader.subscribed => {
                reader.subscribe_at_ms = now_ms + millis(after) + BETWEEN_SUBSCRIPTIONS_MS;
                Call::Subscribe(reader.cursor.subscribe_at())
            }
            Ask::Iterator(anchor) => Call::Iterator(anchor),
            Ask::Records(iterator) => Call::Records(iterator),
            Ask::Done => return self.end(id, effects),
        };
        effects.push(Effect::Ask { reader: id, shard: reader.shard.clone(), call, after });
    }

    /// What an answer brought. Says whether the reader goes on.
    fn on_step(&mut self, id: ReaderId, step: Step, now_ms: u64, effects: &mut Vec<Effect>) -> bool {
        let Some(reader) = self.readers.get(&id) else { return false };
        let shard = reader.shard.clone();
        let (last, arrival_ms) = reader.cursor.progress();
        self.places.insert(shard.clone(), Place { last: last.cloned(), arrival_ms });
        if !step.records.is_empty() {
            effects.push(Effect::HandOn(step.records));
        }
        let goes_on = !step.ended && reader.cursor.ask() != Ask::Done;
        if !goes_on {
            self.end(id, effects);
        }
        if step.fresh {
            self.unread.remove(&shard);
        }
        if let Some(found) = step.sought {
            self.on_sought(&shard, found, now_ms, effects);
        }
        self.check_caught_up(effects);
        goes_on
    }

    /// A reader has come to the end of its shard, as it seems.
    fn end(&mut self, id: ReaderId, effects: &mut Vec<Effect>) {
        if let Some(reader) = self.readers.remove(&id) {
            self.ended.insert(reader.shard.clone());
            effects.push(Effect::Drop(id, reader.shard));
            effects.push(Effect::Survey(RELIST_SOON));
        }
    }

    /// A seek is over. What a shard lacks its parents may have.
    fn on_sought(&mut self, shard: &ShardId, found: bool, now_ms: u64, effects: &mut Vec<Effect>) {
        self.seeking.remove(shard);
        let to_parents = match self.plan.start {
            // A longer look-back reaches behind the last reshard, whatever was found since.
            StartAt::Last => !found || self.plan.lookback_ms > 0,
            StartAt::TrimHorizon | StartAt::AtTimestamp(_) => true,
            StartAt::Latest => false,
        };
        if to_parents {
            for parent in self.lineage.parents_to_seek(shard) {
                self.seek(parent, true, now_ms, effects);
            }
        }
    }

    fn check_caught_up(&mut self, effects: &mut Vec<Effect>) {
        let read = match self.plan.vouch {
            Vouch::Pending => false,
            Vouch::Nothing => self.seeking.is_empty(),
            Vouch::Folded => self.unread.is_empty(),
        };
        if read && self.begun && !self.suspended && !self.caught_up {
            self.caught_up = true;
            effects.push(Effect::CaughtUp);
        }
    }

    fn on_fault(&mut self, id: ReaderId, fault: Fault, now_ms: u64, effects: &mut Vec<Effect>) {
        let interval_ms = self.interval_ms();
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let pause = match fault.kind {
            FaultKind::ExpiredIterator => {
                reader.cursor.on_expired();
                // A stream whose iterators do not live is no reason to spin.
                reader.pace.pause(true, &mut self.rng)
            }
            FaultKind::InvalidArgument if reader.refusals < REFUSALS => {
                reader.refusals += 1;
                if reader.cursor.on_invalid() {
                    let shard = &reader.shard;
                    effects.push(Effect::Gap(format!(
                        "{shard}: records were trimmed before they were read; going on with the oldest"
                    )));
                }
                reader.pace.pause(true, &mut self.rng)
            }
            FaultKind::NotFound | FaultKind::InvalidArgument => return self.lose(id, effects),
            FaultKind::Throttled => {
                reader.pace.on_throttle();
                reader.load.note(now_ms, true);
                if reader.load.is_news() {
                    effects.push(Effect::Crowded(reader.load.ratio()));
                }
                reader.pace.pause(reader.cursor.is_behind(interval_ms), &mut self.rng)
            }
            kind => {
                effects.push(Effect::Trouble(fault));
                reader.pace.on_fault(longest_pause(kind), &mut self.rng)
            }
        };
        self.ask(id, pause, now_ms, effects);
    }

    /// The shard, or the stream, is not what it was: the next survey tells.
    fn lose(&mut self, id: ReaderId, effects: &mut Vec<Effect>) {
        let Some(reader) = self.readers.remove(&id) else { return };
        let pause = self.losses.on_fault(LONGEST_PAUSE_FOR_PEOPLE, &mut self.rng);
        if self.seeking.remove(&reader.shard) {
            // It is sought again, or by the one that takes its place: nothing of it may be missed.
            self.unread.remove(&reader.shard);
            if !self.caught_up {
                self.begun = false;
            }
        }
        self.ended.insert(reader.shard.clone());
        effects.push(Effect::Drop(id, reader.shard));
        effects.push(Effect::Survey(pause));
    }

    fn on_unsubscribed(&mut self, id: ReaderId, why: Result<(), Fault>, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let Err(fault) = why else {
            // It lives five minutes: the next one goes on where it stopped.
            let wait_ms = std::mem::take(&mut reader.subscribe_at_ms).saturating_sub(now_ms);
            return self.ask(id, Duration::from_millis(wait_ms), now_ms, effects);
        };
        let pause = match fault.kind {
            FaultKind::InvalidArgument | FaultKind::ExpiredIterator if reader.refusals < REFUSALS => {
                reader.refusals += 1;
                if reader.cursor.on_invalid() {
                    let shard = &reader.shard;
                    effects.push(Effect::Gap(format!(
                        "{shard}: records were trimmed before they were delivered; going on with the oldest"
                    )));
                }
                Duration::from_millis(BETWEEN_SUBSCRIPTIONS_MS)
            }
            FaultKind::NotFound => {
                // The consumer, or the shard: polling finds out which.
                self.consumer = false;
                effects.push(Effect::Register);
                Duration::from_millis(BETWEEN_SUBSCRIPTIONS_MS)
            }
            kind => {
                effects.push(Effect::Trouble(fault));
                let pause = reader.pace.on_fault(longest_pause(kind), &mut self.rng);
                pause.max(Duration::from_millis(BETWEEN_SUBSCRIPTIONS_MS))
            }
        };
        // Until then it polls: what has gone silent must not stay so.
        reader.subscribe_at_ms = now_ms + millis(pause);
        self.ask(id, Duration::ZERO, now_ms, effects);
    }

    fn drop_readers(&mut self, effects: &mut Vec<Effect>) {
        let readers = std::mem::take(&mut self.readers);
        effects.extend(readers.into_iter().map(|(id, reader)| Effect::Drop(id, reader.shard)));
        self.seeking.clear();
        self.unread.clear();
        self.ended.clear();
    }

    fn interval_ms(&self) -> u64 {
        millis(Duration::from_secs_f64(1.0 / self.plan.top.rate))
    }

    fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.4 * self.rng.f64())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn longest_pause(kind: FaultKind) -> Duration {
    match kind {
        FaultKind::Unavailable | FaultKind::Throttled | FaultKind::NotReady => LONGEST_PAUSE,
        _ => LONGEST_PAUSE_FOR_PEOPLE,
    }
}
