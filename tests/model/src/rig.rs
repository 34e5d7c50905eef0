//! A service in a machine of seams: takes one step from a state to the next.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use pvmsi_hypervisor::{
    FunctionHandle, FunctionPolicy, Policy, Router, Service, ServiceConfig, model,
};
use pvmsi_protocol::{
    CallError, CallId, ConfigureAnswer, ConfigureRequest, FunctionId, Header, Kind,
    QueryVectorsAnswer, QueryVectorsRequest, Reasons, Sequence, Status, TableMode, UpdateRequest,
    VectorIndex, VectorSetup, VectorUpdate,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::VECTORS;
use crate::action::{Action, CONFIGURES, Configure, Operation, UPDATES};
use crate::bounds::Bounds;
use crate::bugs::Bug;
use crate::hardware::{Content, DEVICE_CONTROL, MSIX_CONTROL, PENDING, POWER, TABLE};
use crate::kernel::{self, GSIS, Message};
use crate::rules::Rules;
use crate::state::State;
use crate::violation::Violations;
use crate::world::{
    Access, FUNCTION, Function, Keeper, Live, Map, MemoryMap, NEIGHBOUR, RoutingTable, Shared,
    World, lock,
};

/// The page of the call buffer, and its length.
const PAGE: u32 = 0;
const BUFFER: usize = 512;
const COMMAND: u64 = 0x04;
const BAR: u64 = 0x10;
const NEIGHBOUR_BAR: u32 = 0xe000_0000;

/// The service, what lies behind its seams, and a guest's RAM.
pub struct Rig {
    /// What it was made for.
    pub bounds: Bounds,
    service: Service,
    router: Router,
    shared: Shared,
    memory: GuestMemoryMmap,
    initial: Option<State>,
    /// Steps that were taken to see their accesses, and from where.
    taken: (Option<State>, Vec<(Operation, State)>),
}

impl Rig {
    /// A machine with the function and its neighbour, after power-on.
    ///
    /// # Errors
    /// When the machine cannot be made.
    pub fn new(bounds: Bounds) -> Result<Self> {
        // One route is the neighbour's.
        let live = Live::new(bounds.arm64, bounds.isolated, bounds.routes + 1, bounds.bug);
        let shared = Arc::new(Mutex::new(live));
        let config = ServiceConfig {
            policy: Policy::Direct,
            platform: kernel::platform(bounds.arm64),
            vectors_per_call: if bounds.busy { 1 } else { 2048 },
        };
        let service = Service::new(config, Arc::new(RoutingTable(Arc::clone(&shared))));
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)])?;
        model::keep_events(Some(Box::new(Keeper(Arc::clone(&shared)))));
        let function = Function::new(Arc::clone(&shared), true)?;
        let window = MemoryMap { shared: Arc::clone(&shared), neighbour: true };
        lock(&shared).neighbour = true;
        let (function, window) = (Box::new(function), Box::new(window));
        service
            .add_function(NEIGHBOUR, function, window, FunctionPolicy::default())
            .map_err(|failed| failed.error)?;
        let (router, taken) = (service.router(), (None, Vec::new()));
        let mut rig = Self { bounds, service, router, shared, memory, initial: None, taken };
        rig.set_neighbour_up()?;
        rig.add_function()?;
        rig.initial = Some(State {
            service: rig.service.snapshot(FUNCTION).context("there is a function")?,
            world: lock(&rig.shared).world.clone(),
            rules: Rules::POWER_ON,
            busy: None,
            violations: Violations::empty(),
        });
        Ok(rig)
    }

    /// After power-on.
    ///
    /// # Errors
    /// When there is no machine.
    pub fn initial(&self) -> Result<State> {
        self.initial.clone().context("a machine starts somewhere")
    }

    fn add_function(&self) -> Result<()> {
        let function = Function::new(Arc::clone(&self.shared), false)?;
        let window = MemoryMap { shared: Arc::clone(&self.shared), neighbour: false };
        let policy = if self.bounds.direct { Policy::Direct } else { Policy::Trapped };
        let policy = FunctionPolicy { policy, ..FunctionPolicy::default() };
        self.service
            .add_function(FUNCTION, Box::new(function), Box::new(window), policy)
            .map_err(|failed| failed.error)?;
        Ok(())
    }

    fn function(&self, id: FunctionId) -> Result<FunctionHandle> {
        self.service.function(id).context("there is a function")
    }

    /// The neighbour has one vector and a direct table, which it keeps.
    fn set_neighbour_up(&self) -> Result<()> {
        lock(&self.shared).neighbour = true;
        self.router.config_write(NEIGHBOUR, BAR, &NEIGHBOUR_BAR.to_le_bytes());
        self.router.config_write(NEIGHBOUR, COMMAND, &[2, 0]);
        self.router.config_write(NEIGHBOUR, MSIX_CONTROL, &[0x80]);
        for _ in 0..=VECTORS {
            let setup =
                VectorSetup { message: Some(Message(0).guest(self.bounds.arm64)), masked: false };
            let sequence = Sequence::START;
            let (status, _) = self.ring(CallId::Configure, NEIGHBOUR, |body| {
                ConfigureRequest::encode(Kind::MsiX, 1, sequence, [setup].into_iter(), body).ok()
            })?;
            if status == Status::SUCCESS {
                lock(&self.shared).neighbour = false;
                return Ok(());
            }
        }
        Err(anyhow!("the neighbour was not configured"))
    }

    /// A call.
    fn ring(
        &self,
        call: CallId,
        function: FunctionId,
        encode: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<(Status, Vec<u8>)> {
        let mut body = [0; BUFFER - Header::SIZE];
        let used = encode(&mut body).context("the body fits the buffer")?;
        let header =
            Header::request(call, function, BUFFER, used).context("the buffer is short")?;
        let start = GuestAddress(Header::SIZE.try_into()?);
        self.memory.write_slice(&header.to_bytes(), GuestAddress(0))?;
        self.memory.write_slice(&body[..used], start)?;
        self.service.doorbell(&self.memory, PAGE)?;
        let mut header = [0; Header::SIZE];
        self.memory.read_slice(&mut header, GuestAddress(0))?;
        let header = Header::from_bytes(&header);
        let mut answer = vec![0; usize::try_from(header.body_length)?.min(BUFFER)];
        self.memory.read_slice(&mut answer, start)?;
        Ok((header.status, answer))
    }

    /// Puts a state in.
    fn load(&self, state: &State) -> Result<()> {
        lock(&self.shared).forget();
        self.service
            .load(FUNCTION, &state.service)
            .context("there is a function")?
            .context("no events can be made")?;
        let fds = self.service.event_fds(FUNCTION);
        lock(&self.shared).load(&state.world, &state.rules, &fds);
        Ok(())
    }

    /// The accesses of an operation that nobody disturbs.
    ///
    /// # Errors
    /// When the machine breaks.
    pub fn accesses(&mut self, state: &State, operation: Operation) -> Result<Vec<Access>> {
        let next = self.run(state, Action { operation, meanwhile: None })?;
        if self.taken.0.as_ref() != Some(state) {
            self.taken = (Some(state.clone()), Vec::new());
        }
        self.taken.1.push((operation, next));
        Ok(std::mem::take(&mut lock(&self.shared).accesses))
    }

    /// Takes a step.
    ///
    /// # Errors
    /// When the machine breaks.
    pub fn step(&mut self, state: &State, action: Action) -> Result<State> {
        if action.meanwhile.is_none()
            && self.taken.0.as_ref() == Some(state)
            && let Some(at) = self.taken.1.iter().position(|(done, _)| *done == action.operation)
        {
            return Ok(self.taken.1.swap_remove(at).1);
        }
        self.run(state, action)
    }

    fn run(&mut self, state: &State, action: Action) -> Result<State> {
        self.load(state)?;
        let Action { operation, meanwhile } = action;
        let after = operation.after(&self.bounds, &state.rules, state.world.hardware.answers());
        let mut step = Step {
            after: self.expected(operation, state, after),
            busy: state.busy,
            reported: [false; VECTORS],
            unchanged: false,
            repeats: false,
        };
        let before = self.function(FUNCTION)?.status()?;
        {
            let mut live = lock(&self.shared);
            live.begin(&state.rules, &step.after);
            live.interference = meanwhile;
        }
        self.act(state, operation, &mut step)?;
        if operation == Operation::Remove {
            return self.removed();
        }
        let after = self.function(FUNCTION)?.status()?;
        let service = self.service.snapshot(FUNCTION).context("there is a function")?;
        let mut live = lock(&self.shared);
        live.settle_names(&self.service.event_fds(FUNCTION));
        let live = &mut *live;
        let mut rules = step.after.clone();
        rules.owed = live.owed;
        let mut violations = live.violations;
        self.follow_the_table(operation, live, &mut rules, &service);
        for (flying, masked) in live.world.hardware.in_flight.iter_mut().zip(rules.masked) {
            *flying = flying.map(|unmasked| unmasked || !masked);
        }
        for (vector, reported) in step.reported.into_iter().enumerate() {
            if reported {
                match rules.owed[vector].checked_sub(1) {
                    Some(left) => rules.owed[vector] = left,
                    None => violations |= Violations::DOUBLED,
                }
                if !step.after.masked[vector] && live.written[vector].is_none() {
                    violations |= Violations::CALLS;
                }
            }
        }
        violations |= waiting(operation, &state.rules, &mut rules, &service, live, &self.bounds);
        violations |= self.standing(&rules, &live.world, &service, &after);
        if service.prepared() > 0 && step.busy.is_none() {
            violations |= Violations::ROUTES;
        }
        // Each repetition takes the vectors further.
        if step.repeats && service == state.service {
            violations |= Violations::CALLS;
        }
        let (updates, set_ups) = operation.cost(&state.rules, state.service.prepared());
        if live.updates > updates || live.set_ups > set_ups {
            violations |= Violations::COST;
        }
        let generation = match self.bounds.bug {
            Some(Bug::GenerationStands) => before.generation,
            _ => after.generation,
        };
        let configured = matches!(operation, Operation::Configure(_)) && step.busy.is_none();
        let changed = configured || (before.assigned, before.mode) != (after.assigned, after.mode);
        if changed && generation == before.generation {
            violations |= Violations::GENERATION;
        }
        let same = service == state.service && after.generation == before.generation;
        if step.unchanged && (!same || live.updates > 0 || live.set_ups > 0) {
            violations |= Violations::CALLS;
        }
        Ok(State { service, world: live.world.clone(), rules, busy: step.busy, violations })
    }

    /// Calls that must fail change nothing.
    fn expected(&self, operation: Operation, state: &State, after: Rules) -> Rules {
        match operation {
            Operation::Update(number) if !update_is_valid(number, &state.rules) => {
                state.rules.clone()
            }
            _ => after,
        }
    }

    fn act(&self, state: &State, operation: Operation, step: &mut Step) -> Result<()> {
        let entry =
            |vector: u8| u64::from(state.world.hardware.bar) + TABLE + u64::from(vector) * 16;
        let config = |offset: u64, data: &[u8]| {
            self.router.config_write(FUNCTION, offset, data);
        };
        match operation {
            Operation::SetMask(vector, masked) if state.world.map.table => {
                lock(&self.shared).set_mask_by_mapping(usize::from(vector), masked);
            }
            Operation::SetMask(vector, masked) | Operation::SetMaskByExit(vector, masked) => {
                self.router.mmio_write(entry(vector) + 12, &u32::from(masked).to_le_bytes());
            }
            Operation::WriteMessage(vector, second) => {
                let message = Message::of(usize::from(vector), second).guest(self.bounds.arm64);
                self.router.mmio_write(entry(vector), &message.address.to_le_bytes());
                self.router.mmio_write(entry(vector) + 8, &message.data.to_le_bytes());
            }
            Operation::WriteIgnored(vector) => {
                self.router.mmio_write(entry(vector) + 8, &0x1234_u32.to_le_bytes());
                // Whatever a reset has left of the entry (H-519).
                let index = usize::from(vector);
                let mut world = lock(&self.shared);
                let content = world.world.hardware.entries[index].content;
                if state.rules.granted(index) && content != Content::Host(vector) {
                    world.violations |= Violations::STUCK;
                }
            }
            Operation::Scribble(vector) => {
                let vector = usize::from(vector);
                lock(&self.shared).world.hardware.entries[vector].content = Content::Foreign;
            }
            Operation::WriteBack(vector) => {
                let content = Content::Host(vector);
                lock(&self.shared).world.hardware.entries[usize::from(vector)].content = content;
            }
            Operation::Configure(number) => self.configure(state, number, step)?,
            Operation::Update(number) => self.update(state, number, step)?,
            Operation::Release => {
                let (status, _) = self.ring(CallId::Release, FUNCTION, |_| Some(0))?;
                self.must(status == Status::SUCCESS);
                step.busy = None;
            }
            Operation::Restore => {
                let (status, _) = self.ring(CallId::Restore, FUNCTION, |_| Some(0))?;
                self.must(status == Status::SUCCESS);
                step.unchanged = state.rules.assigned == 0;
            }
            Operation::Control(enable, function_mask) => {
                let byte = u8::from(enable) << 7 | u8::from(function_mask) << 6;
                config(MSIX_CONTROL, &[byte]);
                if !enable && (state.rules.enable || state.rules.assigned > 0) {
                    step.busy = None;
                }
            }
            Operation::Decoding(decoding) => config(COMMAND, &[u8::from(decoding) << 1, 0]),
            Operation::Power(full) => config(POWER, &[if full { 0 } else { 3 }, 0]),
            Operation::MoveBar(place) => config(BAR, &place.to_le_bytes()),
            Operation::FunctionLevelReset => {
                config(DEVICE_CONTROL, &[0x80]);
                step.reset(&state.rules);
            }
            Operation::ResetFunction => {
                self.function(FUNCTION)?.reset()?;
                step.reset(&state.rules);
            }
            Operation::Revoke(revoked) => {
                let wrong = self.bounds.bug == Some(Bug::WrongFunction);
                let function = if wrong { NEIGHBOUR } else { FUNCTION };
                let function = self.function(function)?;
                let done = if revoked { function.revoke() } else { function.allow() };
                self.must(done.is_ok());
            }
            Operation::Repair => {
                let answers = self.function(FUNCTION)?.repair()?;
                self.must(answers);
            }
            Operation::ResetMachine => {
                self.service.reset()?;
                step.busy = None;
                // The neighbour is a part of the machine.
                lock(&self.shared).violations.remove(Violations::FOREIGN);
                self.set_neighbour_up()?;
            }
            Operation::Remove => {
                self.must(self.function(FUNCTION)?.remove().is_ok());
            }
            Operation::Raise(vector) => lock(&self.shared).raise(usize::from(vector)),
            Operation::RaiseLate(vector) => lock(&self.shared).raise_late(usize::from(vector)),
            Operation::Arrive(vector) => lock(&self.shared).arrive(usize::from(vector)),
            Operation::ResetUnseen => lock(&self.shared).lose_table(),
        }
        Ok(())
    }

    fn must(&self, condition: bool) {
        if !condition {
            lock(&self.shared).violations |= Violations::CALLS;
        }
    }

    fn configure(&self, state: &State, number: u8, step: &mut Step) -> Result<()> {
        let Configure { requested, setups } = CONFIGURES[usize::from(number)];
        let sequence = match state.busy {
            Some((running, sequence)) if running == number => Sequence(sequence),
            _ => Sequence::START,
        };
        let arm64 = self.bounds.arm64;
        let setups = setups.iter().enumerate().map(|(vector, &(message, masked))| VectorSetup {
            message: message.map(|second| Message::of(vector, second).guest(arm64)),
            masked,
        });
        let (status, answer) = self.ring(CallId::Configure, FUNCTION, |body| {
            let requested = u16::from(requested);
            ConfigureRequest::encode(Kind::MsiX, requested, sequence, setups, body).ok()
        })?;
        if status == Status::BUSY {
            let busy = match CallError::decode(status, &answer) {
                Some(CallError::Busy(busy)) => busy,
                other => return Err(anyhow!("the answer of configure: {other:?}")),
            };
            self.must(self.bounds.busy && busy.sequence.0 <= u32::from(requested) + 1);
            step.repeats = sequence != Sequence::START;
            step.busy = Some((number, busy.sequence.0));
            step.after.clone_from(&state.rules);
            return Ok(());
        }
        step.busy = None;
        if status != Status::SUCCESS {
            self.must(false);
            step.after.clone_from(&state.rules);
            return Ok(());
        }
        let answer = ConfigureAnswer::decode(&answer)
            .map_err(|error| anyhow!("the answer of configure: {error}"))?;
        self.must(answer.granted == u16::from(step.after.assigned));
        self.must((answer.mode == TableMode::Direct) == answer.reasons.is_empty());
        for (reported, vector) in step.reported.iter_mut().zip(answer.vectors.iter()) {
            *reported = vector.map_err(|error| anyhow!("{error}"))?.pending;
        }
        Ok(())
    }

    fn update(&self, state: &State, number: u8, step: &mut Step) -> Result<()> {
        let arm64 = self.bounds.arm64;
        let updates = UPDATES[usize::from(number)].iter().map(|&(vector, second)| VectorUpdate {
            vector: VectorIndex(u16::from(vector)),
            message: Message::of(usize::from(vector), second).guest(arm64),
        });
        let (status, _) =
            self.ring(CallId::Update, FUNCTION, |body| UpdateRequest::encode(updates, body).ok())?;
        let valid = update_is_valid(number, &state.rules);
        self.must((status == Status::SUCCESS) == valid);
        step.unchanged = !valid;
        if !valid && self.bounds.bug == Some(Bug::UpdateLies) {
            self.function(FUNCTION)?.revoke()?;
        }
        Ok(())
    }

    /// Mask bits where others have a say: the other processor, and a reset that the host did not see.
    fn follow_the_table(
        &self,
        operation: Operation,
        live: &Live,
        rules: &mut Rules,
        service: &model::Snapshot,
    ) {
        for vector in 0..VECTORS {
            let entry = live.world.hardware.entries[vector];
            if let Some(written) = live.written[vector]
                && rules.granted(vector)
                && rules.assigned > 0
            {
                // With a configure at the same time, whichever comes last.
                let table =
                    if live.world.map.table { Some(entry.masked) } else { service.masked(vector) };
                let either = [written, rules.masked[vector]];
                let configures = matches!(operation, Operation::Configure(_));
                rules.masked[vector] = match table {
                    Some(masked) if configures && either.contains(&masked) => masked,
                    _ => written,
                };
            }
            if rules.reset_unseen && live.world.map.table && rules.granted(vector) {
                rules.masked[vector] = entry.masked;
            }
            if u8::try_from(vector).is_ok_and(|own| entry.content == Content::Host(own)) {
                rules.scribbled[vector] = false;
            }
        }
        if operation == Operation::Restore && live.world.map.table {
            for vector in 0..usize::from(rules.assigned) {
                rules.masked[vector] = live.world.hardware.entries[vector].masked;
            }
        }
    }

    /// Mode, memory map and routes of a state at rest.
    fn standing(
        &self,
        rules: &Rules,
        world: &World,
        service: &model::Snapshot,
        status: &pvmsi_hypervisor::FunctionStatus,
    ) -> Violations {
        let mut violations = Violations::empty();
        let hardware = &world.hardware;
        let mut reasons = Reasons::empty();
        reasons.set(Reasons::NOT_ASSIGNED, rules.assigned == 0);
        reasons.set(Reasons::POLICY, !self.bounds.direct);
        reasons.set(Reasons::NO_ISOLATION, !self.bounds.isolated);
        reasons.set(Reasons::MSIX_DISABLED, !rules.enable);
        reasons.set(Reasons::DECODING_OFF, !hardware.decoding);
        reasons.set(Reasons::POWER_STATE, !hardware.full_power);
        reasons.set(Reasons::HOST_REVOKED, rules.revoked);
        let held = (0..VECTORS).any(|vector| rules.masked[vector] && service.signalled(vector));
        let said = status.reasons;
        let may_hold = !said.contains(Reasons::HELD_EVENT) || (held && rules.assigned > 0);
        let direct = status.mode == TableMode::Direct;
        let right = said.difference(Reasons::HELD_EVENT) == reasons
            && may_hold
            && direct == said.is_empty()
            && u16::from(rules.assigned) == status.assigned;
        if !right {
            violations |= Violations::MODE;
        }
        let bar = hardware.reachable().then_some(u64::from(hardware.bar));
        if world.map != (Map { bar, table: direct && bar.is_some() }) {
            violations |= Violations::MAPPING;
        }
        let kernel = &world.kernel;
        let taken = kernel.taken.iter().skip(1).filter(|&&taken| taken).count();
        // What an unfinished configure has prepared is its own.
        let taken = taken.saturating_sub(service.prepared());
        let right = match rules.assigned {
            // One for each vector that is or was unmasked.
            0 if rules.enable => {
                let used = rules.masked.iter().filter(|&&masked| !masked).count();
                (used.min(self.bounds.routes)..=VECTORS.min(self.bounds.routes)).contains(&taken)
            }
            assigned => taken == usize::from(assigned),
        };
        let loose = (1..GSIS).any(|gsi| {
            !kernel.taken[gsi] && (kernel.routes[gsi].is_some() || kernel.attached[gsi].is_some())
        });
        if !right || loose {
            violations |= Violations::ROUTES;
        }
        if hardware.enabled != (rules.enable || rules.assigned > 0) {
            violations |= Violations::ENABLE;
        }
        violations
    }

    /// Nothing of a function stays behind; then a new one is plugged.
    fn removed(&self) -> Result<State> {
        let mut live = lock(&self.shared);
        live.settle_names(&[]);
        let mut state = self.initial()?;
        let World { hardware, kernel, map } = &live.world;
        state.violations = live.violations;
        if map.bar.is_some() {
            state.violations |= Violations::MAPPING;
        }
        if *kernel != state.world.kernel || hardware.set_up > 0 {
            state.violations |= Violations::ROUTES;
        }
        if hardware.enabled {
            state.violations |= Violations::ENABLE;
        }
        live.world = World { hardware: crate::hardware::Hardware::POWER_ON, ..live.world.clone() };
        drop(live);
        if self.add_function().is_err() {
            state.violations |= Violations::CALLS;
        }
        Ok(state)
    }

    /// Whether the guest reads in a state what it should.
    ///
    /// # Errors
    /// When the machine breaks.
    pub fn reads_right(&self, state: &State) -> Result<bool> {
        self.load(state)?;
        let State { world: World { hardware, map, .. }, rules, .. } = state;
        let (status, answer) = self.ring(CallId::QueryVectors, FUNCTION, |body| {
            use pvmsi_protocol::Encode;
            QueryVectorsRequest { first: 0, count: 2 }.encode(body).ok()
        })?;
        let answer = QueryVectorsAnswer::decode(&answer)
            .map_err(|error| anyhow!("the answer of query-vectors: {error}"))?;
        let mut right = status == Status::SUCCESS;
        let mut control = [0];
        self.router.config_read(FUNCTION, MSIX_CONTROL, &mut control);
        right &= control[0] == u8::from(rules.enable) << 7 | u8::from(rules.function_mask) << 6;
        for (vector, found) in answer.vectors.iter().enumerate() {
            let found = found.map_err(|error| anyhow!("{error}"))?;
            let assigned = vector < usize::from(rules.assigned);
            let message = rules.messages[vector].filter(|_| assigned);
            right &= found.assigned == assigned;
            right &= found.guest_message == message.map(|message| message.guest(self.bounds.arm64));
            right &= found.masked == rules.masked[vector] || !rules.granted(vector);
            right &= found.table_message.is_some()
                == (assigned && (hardware.answers() || found.table_message.is_some()));
            let owed = rules.owed[vector] > u8::from(hardware.in_flight[vector].is_some());
            // What is held for Function Mask, or for want of a message, may be missing while direct.
            let waits =
                owed && rules.masked[vector] && rules.granted(vector) && hardware.reachable();
            right &= !(found.pending && rules.owed[vector] == 0) && (found.pending || !waits);
            if hardware.reachable() && !map.table {
                let bar = u64::from(hardware.bar);
                let mut word = [0; 4];
                let at = bar + TABLE + u64::try_from(vector)? * 16 + 12;
                right &= self.router.mmio_read(at, &mut word);
                right &= word == u32::from(found.masked).to_le_bytes();
                right &= self.router.mmio_read(bar + PENDING, &mut word);
                right &= (word[0] >> vector & 1 == 1) == found.pending;
            }
        }
        Ok(right)
    }
}

/// What a step has to do, and what came of it.
struct Step {
    after: Rules,
    busy: Option<(u8, u32)>,
    reported: [bool; VECTORS],
    unchanged: bool,
    /// A `configure` was repeated and is busy again.
    repeats: bool,
}

impl Step {
    fn reset(&mut self, before: &Rules) {
        if before.assigned == 0 {
            self.busy = None;
        }
    }
}

fn update_is_valid(number: u8, rules: &Rules) -> bool {
    UPDATES[usize::from(number)].iter().all(|&(vector, _)| vector < rules.assigned)
}

/// Where owed events wait, and whether they should.
fn waiting(
    operation: Operation,
    before: &Rules,
    rules: &mut Rules,
    service: &model::Snapshot,
    live: &Live,
    bounds: &Bounds,
) -> Violations {
    let mut violations = Violations::empty();
    let hardware = &live.world.hardware;
    for vector in 0..VECTORS {
        let drops = operation.drops_events(vector, before, rules);
        let flying = hardware.in_flight[vector].is_some();
        let waits = [hardware.pending[vector], flying, service.signalled(vector)];
        let waits = waits.into_iter().map(u8::from).sum();
        let excused = before.excused(vector) || rules.excused(vector);
        let owed = rules.owed[vector];
        if owed > waits && (drops || excused) {
            rules.owed[vector] = waits;
        } else if owed > waits {
            violations |= Violations::LOST;
        } else if owed < waits {
            violations |= Violations::DOUBLED;
        }
        // Vectors of an emulated table that are unmasked later find routes taken.
        let taken = live.world.kernel.taken.iter().skip(1).filter(|&&taken| taken).count();
        let routed = match rules.assigned {
            0 => service.has_gsi(vector) || taken < bounds.routes,
            _ => vector < bounds.routes,
        };
        let served = rules.granted(vector) && routed && hardware.answers();
        if owed > 0 && served && !flying && !excused && rules.may_fire(vector).is_some() {
            violations |= Violations::STUCK;
        }
    }
    violations
}
