//! Bugs of a host in its calls: the request is changed before our host sees it, or the answer before the guest does.

use pvmsi_protocol::{
    Busy, CallError, CallId, ConfigureAnswer, Features, Generation, GuestMessage, Header, Kind,
    MAGIC, NegotiateAnswer, NegotiateRequest, Parameter, QueryFunctionAnswer, QueryVectorsAnswer,
    Reasons, ReleaseAnswer, RestoreAnswer, Sequence, Status, TableMode, UpdateAnswer, VectorAnswer,
    VectorIndex, VectorSetup, Version,
};

use super::exchange::{Exchange, body, encoded};
use super::host::{ID_14_8, ID_31_8, MutantHost, message};
use super::host_bug::HostBug as Bug;
use crate::host::{Platform, Policy, RAM_BYTES, Ram};

const MASKED: VectorAnswer = VectorAnswer { table_message: None, pending: false };

impl MutantHost {
    /// A call with the bug.
    pub(super) fn mutant_ring(&self, page: u32) {
        let ram = self.inner.ram();
        let request = Exchange::read(ram, page);
        if let Some(answer) = self.answer_alone(page, &request) {
            return answer.write(ram, page);
        }
        if let Some(changed) = self.changed_request(&request) {
            changed.write(ram, page);
        }
        self.inner.ring(page);
        let mut answer = Exchange::read(ram, page);
        if answer.header.status != Status::SENTINEL {
            // As a host that has taken the request as it was.
            let Header { status, body_length, .. } = answer.header;
            answer.header = Header { status, body_length, ..request.header };
            answer.write(ram, page);
        }
        if let Some(changed) = self.changed_answer(page, &request, &answer) {
            changed.write(ram, page);
        }
    }

    /// The answer of a host that does nothing, to a request that is as it should be.
    fn answer_alone(&self, page: u32, request: &Exchange) -> Option<Exchange> {
        let header = &request.header;
        let end = (u64::from(page) << 12) + u64::from(header.buffer_length);
        let valid = header.check_request().is_ok() && header.buffer_length >= 64;
        if !valid || end > RAM_BYTES || self.options.policy == Policy::Off {
            return None;
        }
        let call = CallId::from_number(request.header.call);
        let ours = request.header.function == self.options.function;
        match (self.bug, call) {
            (Bug::UnknownCallSucceeds, None) => Some(request.answered(Status::SUCCESS, vec![])),
            (Bug::UpdateForgotten, Some(CallId::Update)) if ours => {
                let updates = request.body.first().copied().unwrap_or(0);
                let generation = self.query()?.generation;
                (updates > 0)
                    .then(|| request.answered(Status::SUCCESS, body(&UpdateAnswer { generation })))
            }
            (Bug::ReleaseForgotten, Some(CallId::Release)) if ours && request.body.is_empty() => {
                let generation = self.query()?.generation.next();
                Some(request.answered(Status::SUCCESS, body(&ReleaseAnswer { generation })))
            }
            (Bug::RestoreForgotten, Some(CallId::Restore)) if ours && request.body.is_empty() => {
                let QueryFunctionAnswer { mode, reasons, generation, .. } = self.query()?;
                let answer = RestoreAnswer { mode, reasons, generation };
                Some(request.answered(Status::SUCCESS, body(&answer)))
            }
            (Bug::BusyOnUpdate, Some(CallId::Update)) if ours => {
                let busy = CallError::Busy(Busy { sequence: Sequence(1), delay_us: 1 });
                Some(request.answered(Status::BUSY, body(&busy)))
            }
            (Bug::BusyWithoutProgress, Some(CallId::Configure)) => {
                let sequence = Sequence(self.count().wrapping_add(1));
                let busy = CallError::Busy(Busy { sequence, delay_us: 1 });
                self.options.vectors_per_call?;
                Some(request.answered(Status::BUSY, body(&busy)))
            }
            _ => None,
        }
    }

    /// The request that our host is given instead.
    fn changed_request(&self, request: &Exchange) -> Option<Exchange> {
        let header = request.header;
        let with = |header| Some(Exchange { header, body: request.body.clone() });
        let call = CallId::from_number(header.call);
        match (self.bug, call) {
            (Bug::MagicIgnored, _) => with(Header { magic: MAGIC, ..header }),
            (Bug::ReservedFieldIgnored, _) => with(Header { reserved: 0, ..header }),
            (Bug::ForeignVersionAccepted, _) => with(Header { version: Version::V1_0, ..header }),
            (Bug::LongBufferAccepted, _) if header.buffer_length > 65536 => {
                with(Header { buffer_length: 65536, ..header })
            }
            (Bug::ForeignFunctionServed, _) => {
                with(Header { function: self.options.function, ..header })
            }
            (Bug::TrailingBytesAccepted, Some(CallId::Release | CallId::Restore))
                if header.check_request().is_ok() =>
            {
                with(Header { body_length: 0, ..header })
            }
            (Bug::AnyMajorSpoken, Some(CallId::Negotiate)) => {
                let asked = NegotiateRequest::decode(&request.body).ok()?;
                let version = Version::V1_0;
                Some(request.with_body(body(&NegotiateRequest { version, ..asked })))
            }
            (Bug::MsiTakenAsMsiX, Some(CallId::Configure)) => {
                request.configure_with(|head, _| head.kind = Kind::MsiX)
            }
            (Bug::MaskBitsOfConfigureIgnored, Some(CallId::Configure)) => {
                request.configure_with(|_, setups| {
                    setups.iter_mut().for_each(|setup| setup.masked = false);
                })
            }
            (Bug::BadMessageAccepted, Some(CallId::Configure)) => {
                request.configure_with(|_, setups| {
                    let bad = |it: &&mut VectorSetup| it.message.is_some_and(is_bad);
                    let setups = setups.iter_mut().filter(bad);
                    setups.for_each(|setup| setup.message = Some(message(0)));
                })
            }
            (Bug::ExtendedDestinationIdsInBothFieldsTaken, Some(CallId::Configure)) => request
                .configure_with(|_, setups| {
                    let messages = setups.iter_mut().filter_map(|setup| setup.message.as_mut());
                    messages
                        .filter(|message| message.address & ID_31_8 != 0)
                        .for_each(|message| message.address &= !ID_14_8);
                }),
            (Bug::DuplicateVectorAccepted, Some(CallId::Update)) => {
                request.update_with(|updates| {
                    let mut seen = std::collections::BTreeSet::new();
                    updates.retain(|update| seen.insert(update.vector));
                })
            }
            (Bug::SharedMessageAccepted, Some(CallId::Configure))
                if self.options.platform == Some(Platform::ARM64) =>
            {
                let mut seen = std::collections::BTreeSet::new();
                request.configure_with(|_, setups| {
                    let messages = setups.iter_mut().filter_map(|setup| setup.message.as_mut());
                    messages.for_each(|message| {
                        if !seen.insert((message.address, message.data)) {
                            message.data = message.data.wrapping_add(0x1000);
                        }
                    });
                })
            }
            _ => None,
        }
    }

    /// The answer that the guest finds instead.
    fn changed_answer(&self, page: u32, request: &Exchange, answer: &Exchange) -> Option<Exchange> {
        let call = CallId::from_number(request.header.call)?;
        match call {
            _ if self.bug == Bug::SentinelLeft && answer.succeeded() => {
                Some(Exchange { header: request.header, body: answer.body.clone() })
            }
            _ if self.bug == Bug::HeaderNotEchoed && answer.succeeded() => {
                let header = Header { buffer_length: 0, ..answer.header };
                Some(Exchange { header, ..answer.clone() })
            }
            _ if self.bug == Bug::AnswerPastTheBuffer => {
                let end = (u64::from(page) << 12) + u64::from(request.header.buffer_length);
                self.inner.ram().write(end, &[0; 4]);
                None
            }
            _ if self.bug == Bug::GenerationStandsStill && answer.succeeded() => {
                still(call, answer)
            }
            CallId::Negotiate if answer.succeeded() => self.changed_negotiate(request, answer),
            CallId::Configure if answer.succeeded() => self.changed_configure(request, answer),
            CallId::Configure => self.failed_configure(page, request, answer),
            CallId::Update => self.changed_update(request, answer),
            CallId::Release if self.bug == Bug::ReleaseFailsWhenNothingIsAssigned => {
                let again = self.query()?.generation == self.last_release(answer)?;
                again.then(|| request.answered(Status::HARDWARE_ERROR, vec![]))
            }
            CallId::Release if self.bug == Bug::NumbersLongerThanNeeded && answer.succeeded() => {
                let (last, rest) = answer.body.split_last()?;
                Some(answer.with_body([rest, &[last | 0x80, 0]].concat()))
            }
            CallId::Restore if self.bug == Bug::RestoreLeavesTheFunctionDisabled => {
                if self.memory().reset {
                    self.inner.reset_unseen_with_enable();
                }
                None
            }
            CallId::QueryFunction if self.bug == Bug::ReasonsEmptyWhileTrapped => {
                let read = QueryFunctionAnswer::decode(&answer.body).ok()?;
                let reasons = Reasons::empty();
                Some(answer.with_body(body(&QueryFunctionAnswer { reasons, ..read })))
            }
            _ => None,
        }
    }

    fn changed_negotiate(&self, request: &Exchange, answer: &Exchange) -> Option<Exchange> {
        let asked = NegotiateRequest::decode(&request.body).ok()?;
        let read = NegotiateAnswer::decode(&answer.body).ok()?;
        let changed = match self.bug {
            Bug::MinorAboveTheRequest => {
                let version =
                    Version { minor: asked.version.minor.checked_add(1)?, ..read.version };
                NegotiateAnswer { version, ..read }
            }
            Bug::AnyMajorSpoken => NegotiateAnswer { version: asked.version, ..read },
            Bug::FeaturesNotAskedFor => NegotiateAnswer { features: Features::all(), ..read },
            _ => return None,
        };
        Some(answer.with_body(body(&changed)))
    }

    fn changed_configure(&self, request: &Exchange, answer: &Exchange) -> Option<Exchange> {
        let asked = pvmsi_protocol::ConfigureRequest::decode(&request.body).ok()?;
        match self.bug {
            Bug::ShortGrantCountedAsFull => {
                answer.configured_with(|vectors| vectors.resize(asked.requested.into(), MASKED))
            }
            Bug::PendingLostAtTheSwitch => answer.configured_with(|vectors| {
                vectors.iter_mut().for_each(|vector| vector.pending = false);
            }),
            Bug::PendingReportedAndDelivered => {
                let read = ConfigureAnswer::decode(&answer.body).ok()?;
                for (vector, reported) in (0..).zip(read.vectors) {
                    if reported.is_ok_and(|it| it.pending) {
                        self.deliver(message(vector));
                    }
                }
                None
            }
            Bug::PendingReportedAgain => answer.configured_with(|vectors| {
                let mut known = self.memory();
                for (vector, reported) in (0..).zip(vectors.iter_mut()) {
                    if reported.pending {
                        known.pending.insert(vector);
                    }
                    reported.pending |= known.pending.contains(&vector);
                }
            }),
            _ => None,
        }
    }

    fn failed_configure(
        &self,
        page: u32,
        request: &Exchange,
        answer: &Exchange,
    ) -> Option<Exchange> {
        let error = CallError::decode(answer.header.status, &answer.body)?;
        match (self.bug, error) {
            (Bug::BusyWithSequenceZero, CallError::Busy(busy)) => {
                let zero = CallError::Busy(Busy { sequence: Sequence::START, ..busy });
                Some(answer.with_body(body(&zero)))
            }
            (Bug::FailedConfigureReleases, CallError::Parameter(_) | CallError::Hardware) => {
                self.call(CallId::Release, vec![]);
                None
            }
            (Bug::StaleSequenceAccepted, CallError::Parameter(detail))
                if detail.parameter == Parameter::Sequence =>
            {
                let anew = request.configure_with(|head, _| head.sequence = Sequence::START)?;
                anew.write(self.inner.ram(), page);
                self.inner.ring(page);
                None
            }
            _ => None,
        }
    }

    fn changed_update(&self, request: &Exchange, answer: &Exchange) -> Option<Exchange> {
        let updates = pvmsi_protocol::UpdateRequest::decode(&request.body).ok()?;
        match self.bug {
            Bug::UpdateUnmasks if answer.succeeded() => {
                for update in updates.vectors.iter().flatten() {
                    self.store_mask(update.vector, 0);
                }
            }
            Bug::EventsLostOnUpdate => drop(self.inner.interrupts()),
            Bug::FailedUpdateAppliesItsFirst if !answer.succeeded() => {
                let first = updates.vectors.iter().next()?.ok()?;
                let one = [first].into_iter();
                let encode = |b: &mut [u8]| pvmsi_protocol::UpdateRequest::encode(one, b);
                self.call(CallId::Update, encoded(encode));
            }
            _ => {}
        }
        None
    }

    /// The generation before a release that has succeeded, where nothing was assigned.
    fn last_release(&self, answer: &Exchange) -> Option<Generation> {
        let generation = ReleaseAnswer::decode(&answer.body).ok()?.generation;
        let mut known = self.memory();
        let same = known.released == Some(generation);
        known.released = Some(generation);
        same.then_some(generation)
    }

    /// Reads the request twice: checks the first, acts on the second.
    pub(super) fn read_twice(&self, page: u32, watcher: &mut dyn FnMut(&dyn Ram)) {
        let ram = self.inner.ram();
        watcher(ram);
        let checked = Exchange::read(ram, page);
        watcher(ram);
        let acted_on = Exchange::read(ram, page);
        self.inner.ring(page);
        let answer = Exchange::read(ram, page);
        if checked != acted_on && !answer.succeeded() {
            let generation = Generation(1);
            let success = checked.answered(Status::SUCCESS, body(&UpdateAnswer { generation }));
            success.write(ram, page);
        }
    }

    /// Writes the header first, and the body when another processor has looked.
    pub(super) fn header_first(&self, page: u32, watcher: &mut dyn FnMut(&dyn Ram)) {
        let ram = self.inner.ram();
        let address = u64::from(page) << 12;
        let request = Exchange::read(ram, page);
        self.inner.ring(page);
        let answer = Exchange::read(ram, page);
        ram.write(address + 32, &vec![0xee; answer.body.len()]);
        ram.write(address + 32, &request.body);
        watcher(ram);
        answer.write(ram, page);
    }

    fn query(&self) -> Option<QueryFunctionAnswer> {
        QueryFunctionAnswer::decode(&self.call(CallId::QueryFunction, vec![])?.body).ok()
    }

    /// A call of the host's own, in a page that the guest does not see change.
    pub(super) fn call(&self, call: CallId, body: Vec<u8>) -> Option<Exchange> {
        const PAGE: u32 = 0xe0;
        let ram = self.inner.ram();
        let mut before = vec![0; 0x1000];
        ram.read(u64::from(PAGE) << 12, &mut before);
        let header = Header::request(call, self.options.function, 0x1000, body.len())?;
        Exchange { header, body }.write(ram, PAGE);
        self.inner.ring(PAGE);
        let answer = Exchange::read(ram, PAGE);
        ram.write(u64::from(PAGE) << 12, &before);
        Some(answer)
    }

    pub(super) fn assigned(&self) -> u16 {
        self.query().map_or(0, |query| query.assigned)
    }

    pub(super) fn is_assigned_and_trapped(&self) -> bool {
        self.query().is_some_and(|it| it.assigned > 0 && it.mode == TableMode::Trapped)
    }

    fn store_mask(&self, vector: VectorIndex, value: u32) {
        let at = self.entry_address(vector.0) + 12;
        self.inner.mmio_write(at, &value.to_le_bytes());
    }
}

fn is_bad(message: GuestMessage) -> bool {
    message.address & 0xff_fff0_0000 != 0xfee0_0000
}

/// The answer with a generation that never changes.
fn still(call: CallId, answer: &Exchange) -> Option<Exchange> {
    let generation = Generation(1);
    let bytes = &answer.body;
    let body = match call {
        CallId::QueryFunction => {
            let read = QueryFunctionAnswer::decode(bytes).ok()?;
            body(&QueryFunctionAnswer { generation, ..read })
        }
        CallId::QueryVectors => {
            let read = QueryVectorsAnswer::decode(bytes).ok()?;
            let states = read.vectors.iter().collect::<Result<Vec<_>, _>>().ok()?;
            encoded(|b| QueryVectorsAnswer::encode(generation, states.into_iter(), b))
        }
        CallId::Configure => {
            let read = ConfigureAnswer::decode(bytes).ok()?;
            let vectors = read.vectors.iter().collect::<Result<Vec<_>, _>>().ok()?;
            let (mode, reasons) = (read.mode, read.reasons);
            encoded(|b| ConfigureAnswer::encode(mode, reasons, generation, vectors.into_iter(), b))
        }
        CallId::Update => body(&UpdateAnswer { generation }),
        CallId::Release => body(&ReleaseAnswer { generation }),
        CallId::Restore => {
            let read = RestoreAnswer::decode(bytes).ok()?;
            body(&RestoreAnswer { generation, ..read })
        }
        CallId::Negotiate => return None,
    };
    Some(answer.with_body(body))
}
