#!/bin/sh
# Plants known bugs in a copy of the core, one at a time, and requires that its tests catch each.
#
#   scripts/mutants.sh          all of them (about three minutes)
#   scripts/mutants.sh NAME...  some
#
# A bug is a sed script for one file. A script that changes nothing is an error: the code has moved on
# and the bug must be planted anew.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
target=${CARGO_TARGET_DIR:-$here/target}/mutants

# The core alone, with the simulator as one more of its tests.
mkdir -p "$copy/router"
cp -r "$here/router/core" "$copy/router/core"
sed -e 's/^members = .*/members = ["router\/core"]/' -e '/^default-members/d' "$here/Cargo.toml" >"$copy/Cargo.toml"
sed -e 's|"../../router/core/tests/table/mod.rs"|"table/mod.rs"|' -e '/^mod hot_path;/d' \
    -e 's|^use croupier_tests::|#[allow(unreachable_pub)]\n#[path = "table/figures.rs"]\nmod croupier_tests;\n&|' \
    "$here/tests/sim/main.rs" >"$copy/router/core/tests/sim.rs"
cp "$here/tests/support/figures.rs" "$copy/router/core/tests/table/figures.rs"
cp -r "$copy/router/core/src" "$copy/whole"

play() {
    (cd "$copy" && CARGO_TARGET_DIR="$target" SIM_SEEDS=100 RUST_BACKTRACE=0 \
        timeout 120 cargo test --offline -q -p croupier-core >"$copy/log" 2>&1)
}

planted=0 survived=''
# plant NAME FILE SED-SCRIPT
plant() {
    case " $wanted " in *" all "* | *" $1 "*) ;; *) return 0 ;; esac
    planted=$((planted + 1))
    rm -rf "$copy/router/core/src" && cp -r "$copy/whole" "$copy/router/core/src"
    sed -i -e "$3" "$copy/router/core/src/$2"
    if cmp -s "$copy/whole/$2" "$copy/router/core/src/$2"; then
        echo "mutants: $1 changes nothing in $2; plant it anew" >&2
        exit 1
    fi
    if play; then
        survived="$survived $1"
        echo "SURVIVED  $1"
    elif grep -q '^error' "$copy/log" && ! grep -q 'test result: FAILED\|panicked' "$copy/log"; then
        echo "mutants: $1 does not compile:" >&2
        grep -A5 '^error' "$copy/log" >&2
        exit 1
    else
        echo "caught    $1 ($(grep -c -- '--- FAILED' "$copy/log") tests)"
    fi
}

wanted=${*:-all}
if ! play; then
    echo "mutants: the tests fail without any planted bug" >&2
    tail -20 "$copy/log" >&2
    exit 1
fi

# Dealing
plant cursor-stands-still primary.rs 's/listener.last = worker;/let _ = \&listener.last;/'
plant least-takes-the-most scheduler.rs 's/|(best, _)| load < best)/|(best, _)| load > best)/'
plant stops-at-any-load scheduler.rs 's/has_room \&\& load <= floor/has_room/'
plant floor-outlives-the-epoch dealer.rs '/self.epoch = self.epoch.wrapping_add(1);/{n;d}'
plant late-ones-get-clients scheduler.rs 's/let late = if self.well { None } else { self.late };/let late = self.late.or(self.best);if late.is_some() { return late.map(|(_, i)| i); }/'
plant the-dead-get-clients dealer.rs 's/| State::Killing { .. }$/\n/;s/| State::Dead => Standing::Away,/| State::Dead => Standing::Away,\n State::Killing { .. } => Standing::Regular,/'
plant the-draining-get-clients scheduler.rs 's/Standing::Finishing if ask.origin == Origin::Held => Standing::Regular,/Standing::Finishing => Standing::Regular,/'
plant max-active-is-ignored seat.rs 's/window.min(active)/window.max(window.min(active))/'
plant windows-never-grow window.rs 's/self.size.saturating_mul(2).min(most)/self.size.min(most)/'
plant many-workers-get-deep-windows window.rs 's/if self.size < DEEP { share.max(BATCH) }/if self.size < u16::MAX { share.max(BATCH) }/'
plant windows-never-shrink window.rs 's/(self.size \/ 2).max(1)/self.size/'
plant the-idle-are-fast window.rs 's/let soon = active_then > 0 \&\& /let soon = /'
plant waves-shrink-windows window.rs 's/^const LONG: u32 = 64;/const LONG: u32 = 9;/'
plant passed-over-without-a-bell bells.rs 's/if seat.queued() < u64::from(seat.window)/if seat.queued() > u64::from(seat.window)/'
plant only-some-new-bells-are-looked-behind bells.rs 's/worker.bells = Bells::Written;/worker.bells = if seat.id.0 % 2 == 0 { Bells::Written } else { Bells::LookedAfter };/'
plant no-second-look primary.rs 's/if self.dealer.set_bells(ask, \&mut self.actions) {/if self.dealer.set_bells(ask, \&mut self.actions) \&\& false {/'
plant bells-are-never-set bells.rs 's/    if same \&\& !has_rung(seat, worker.bell) {/    if same || seat.id.0 > 0 {/'
plant a-mark-of-zero bells.rs 's/bell(seat, mark.max(1), false)/bell(seat, 0 * mark, false)/'
plant no-slow-start life.rs 's/\&\& !self.config.slow_start.is_zero()/\&\& self.config.slow_start.is_zero()/'
plant sticky-by-worker dealer.rs 's/sticky::salt(worker.slot)/sticky::salt(crate::event::SlotId(u16::try_from(worker.id.0).unwrap_or(0)))/'
plant the-gate-is-open primary.rs 's/self.config.policy == Policy::Ip \&\& self.start != Start::Everybody/self.config.policy == Policy::Ip \&\& self.start > Start::Everybody/'
plant a-128-is-a-client sticky.rs 's/siphash(key, \&\[a, b, c, d, e, f, g, h\])/siphash(key, \&[a, b, c, d, e, f, g])/'
plant any-numbers-fit dealer.rs 's/seat.misfits < MISFITS_MAX/seat.misfits < u8::MAX/'

# Connections in hand
plant a-full-kernel-loses-one primary.rs 's/self.ledger.held.push_front(arrival);/let _ = arrival;/'
plant no-pause primary.rs 's/who.paused = Some(until);/let _ = until;/'
plant a-pause-never-ends primary.rs 's/until <= now)/until < Now(0))/'
plant unknown-givers-are-robbed salvage.rs 's/        self.ledger.held.push_back(arrival);\n/&/;0,/self.ledger.taken_back += 1;/s//self.ledger.taken_back += 1; if self.dealer.find(worker).is_none() { return; }/'
plant held-without-bound ledger.rs 's/HELD_MAX.saturating_sub(spoken_for)/usize::MAX.saturating_sub(spoken_for)/'
plant forgotten-with-a-queue salvage.rs 's/loads.queued_exact(id) == Some(0)/loads.queued_exact(id) < Some(2)/'
plant salvage-of-the-living salvage.rs 's/if matches!(worker.state, State::Dead) {/if matches!(worker.state, State::Dead | State::Killing { .. }) {/'

# Late workers
plant steals-when-all-are-late late.rs 's/^                0 => true,/                _ if true => true,\n                0 => true,/'
plant never-steals late.rs 's/        self.steal(loads);/        let _ = loads;/'
plant no-probe life.rs 's/self.actions.push_back(Action::Probe { worker, listener });/let _ = (worker, listener);/'
plant oversleeps-and-blames late.rs 's/        if overslept {/        if overslept \&\& now == Now(0) {/'
plant looks-for-ever late.rs 's/        self.late_at = next;/        self.late_at = next.or(Some(now.after(WATCH)));/'

# Supervision
plant a-slow-starter-lives life.rs 's/        if now >= deadline {/        if now >= deadline \&\& listens {/'
plant ready-without-listening life.rs 's/!seat.listens.is_empty() \&\& declared.all/!seat.listens.is_empty() || declared.all/'
plant no-backoff restart.rs 's/policy.base.saturating_mul(factor).min(policy.max)/Duration::ZERO/'
plant no-budget restart.rs 's/if self.crashes < policy.budget.max(1) {/if self.crashes < u32::MAX {/'
plant hopeless-goes-on life.rs 's/        if hopeless || /        if hopeless \&\& /'
plant drains-for-ever salvage.rs 's/        if deadline <= now {/        if deadline < Now(0) {/'
plant no-kill-after salvage.rs 's/if kill_at <= self.dealer.now =>/if kill_at < Now(0) =>/'
plant cuts-what-is-active salvage.rs 's/Some(_) if !drains_itself => {/Some(_) if !drains_itself \&\& now == deadline => {/'
plant closes-without-a-second-look stop.rs 's/Closing::Quiet => known.closing = Closing::Resting { until },/Closing::Quiet | Closing::Again if until > Now(0) => { known.closing = Closing::Told; self.actions.push_back(Action::CloseListener { listener }); }\nClosing::Quiet => {}/'
plant stop-takes-no-clients stop.rs 's/Self::No | Self::Closing { .. } => true,/Self::No => true, Self::Closing { .. } => false,/'
plant the-second-request-waits stop.rs 's/Stop::No | Stop::Closing { .. } | Stop::Draining { .. } => self.end(Outcome::Killed),/Stop::No => self.end(Outcome::Killed), Stop::Closing { .. } | Stop::Draining { .. } => {}/'
plant sockets-stay-adopted life.rs 's/if slot.sockets == Sockets::Adopted {/if slot.sockets == Sockets::Own {/'

# Reload
plant no-canary reload.rs 's/Way::Fill { generation, rolling, left: 1 }/Way::Fill { generation, rolling, left: u16::MAX }/'
plant surge-without-bound reload.rs 's/if starting >= usize::from(self.max_surge()) || !memory {/if !memory {/'
plant no-soak reload.rs 's/until: self.dealer.now.after(wait) }/until: self.dealer.now }/'
plant the-parked-keep-their-queue salvage.rs 's/if !busy \&\& queued > 0 \&\& self.others_serve/if !busy \&\& queued > 99 \&\& self.others_serve/'
plant drains-before-all-hold reload.rs 's/if done || rolling {/if true || done || rolling {/'
plant a-failure-is-ignored reload.rs 's/if is_new \&\& self.reload.started(worker) {/if is_new \&\& was_ready \&\& self.reload.started(worker) {/'
plant the-new-stay-after-a-failure reload.rs 's/if let Some(new) = new {/if let Some(new) = new.filter(|_| stays()) {/;$a fn stays() -> bool { false }'
plant listens-on-less-than-the-old life.rs 's/if is_ready \&\& self.replaces_all(i) \&\&/if (is_ready || self.replaces_all(i)) \&\&/'
plant two-queue-as-two reload.rs 's/if self.reload.is_under_way() {/if self.reload.is_under_way() \&\& rolling {/'
plant rolling-does-not-wait reload.rs 's/let memory = !rolling || self.leaving().next().is_none();/let memory = true;/'
plant restarts-beside-the-next life.rs 's/matches!(slot.beside, Beside::Next { .. })/matches!(slot.beside, Beside::Last { .. })/'
plant ends-though-a-reload-may-help life.rs 's/let starts = self.reload.is_under_way() ||/let starts = self.reload.is_under_way() \&\& self.slots.is_empty() ||/'
plant draining-without-bound reload.rs 's/for _ in usize::from(self.max_draining())..count {/for _ in count..count {/'
plant a-restart-takes-a-new-number reload.rs 's/slot.generation = generation;/slot.generation = Generation(1);/'

# Slots by hand
plant a-stopped-slot-comes-back wants.rs '/let (sits, beside)/,/match beside/s/slot.take(SlotInput::Withdraw);/let _ = SlotInput::Withdraw;/'
plant a-stop-kills wants.rs 's/SlotState::Up { worker } => self.take_leave(worker),/SlotState::Up { worker } => self.condemn(worker),/'
plant a-starting-one-is-left wants.rs 's/SlotState::Starting { worker } => self.condemn(worker),/SlotState::Starting { .. } => {}/'
plant the-parked-one-stays wants.rs 's/Beside::Last { worker } => self.take_leave(worker),/Beside::Last { .. } => {}/'
plant the-next-one-stays wants.rs 's/Beside::Next { worker } => self.condemn(worker),/Beside::Next { .. } => {}/'
plant no-fresh-record wants.rs 's/        slot.streak.lived();/        let _ = \&slot.streak;/'
plant a-start-waits-its-turn wants.rs 's/slot.take(SlotInput::Raise { at: now });/slot.take(SlotInput::Raise { at: now.after(core::time::Duration::from_millis(500)) });/'
plant a-start-counts-as-restart wants.rs 's/slot.starts = slot.starts.saturating_sub(1);/slot.starts = slot.starts.saturating_sub(0);/'
plant a-start-has-the-first-number wants.rs 's/slot.generation.max(held) };/slot.generation };/'
plant a-start-is-the-canary wants.rs 's/if new == Some(slot.generation) { held }/if new.is_none() { held }/'
plant no-canary-after-a-stop reload.rs 's/            way if !any => /            way if !any \&\& generation.0 == 0 => /'
plant the-killed-are-not-waited-for reload.rs 's/if vacant.is_some_and(|slot| self.family_wait(slot).is_some()) {/if vacant.is_some_and(|slot| self.family_wait(slot).is_none() \&\& now_or_never()) {/;$a fn now_or_never() -> bool { false }'
plant a-crash-is-meant wants.rs 's/(sits \&\& self.config.stop_exit_codes.contains(code))/(sits \&\& (code == 1 || self.config.stop_exit_codes.contains(code)))/'
plant the-new-mean-it-too wants.rs 's/ \&\& !self.reload.started(worker);/;/'
plant all-done-goes-on wants.rs 's/            self.begin_to_stop();/            let _ = 0;/'
plant the-operator-is-not-asked life.rs 's/if starts || self.is_held_down() {/if starts {/'
plant the-stopped-count-as-failed life.rs 's/let failed = wanted().all/let failed = self.slots.iter().all/'
plant sockets-of-the-stopped-are-left wants.rs 's/slot.sockets = Sockets::Left { since: now };/slot.sockets = Sockets::Own;/'
plant the-stopped-are-missed views.rs 's/let mut wanted = self.slots.iter().filter(|slot| slot.want == Want::Up).peekable();/let mut wanted = self.slots.iter().peekable();/'

# Leaving, and showing that one can serve
plant answers-are-not-awaited check.rs 's/Check::Asked { .. } => return false,/Check::Asked { .. } => return true,/'
plant any-answer-passes check.rs 's/(Self::Asked { .. }, true) => Self::Passed,/(Self::Asked { .. }, _) => Self::Passed,/'
plant waits-do-not-double check.rs 's/1 << tries.min(8)/1 << (0 * tries.min(8))/'
plant answers-outlive-the-listener life.rs 's/worker.check = worker.check.again(self.dealer.now);/let _ = worker.check.again(self.dealer.now);/'
plant nobody-is-kept keep.rs 's/if !loads.holds(id, client.mark()) {/if true {/'
plant everybody-is-kept keep.rs 's/if !loads.holds(id, client.mark()) {/if loads.load(id).claimed == u64::MAX {/'
plant kept-for-ever keep.rs 's/State::Finishing { .. } => worker.keeps_until > self.dealer.now,/State::Finishing { .. } => true,/'
plant kept-and-taken-back salvage.rs 's/ \&\& !self.keeps(i) {/ {/'
plant a-stop-waits-for-drains stop.rs 's/let deadline = deadline.max(self.dealer.now);/let deadline = deadline.max(self.dealer.now.after(self.config.drain_timeout));/'
plant a-stop-forgets-the-told stop.rs 's/let input = if told {/let input = if told \&\& false {/'
plant told-again-and-again salvage.rs 's/== Farewell::NotYet {/!= Farewell::NotYet || true {/'
plant told-before-the-queue-is-empty salvage.rs 's/^        let active = loads.load(id).active;$/        self.dismiss(i); let active = loads.load(id).active;/'

# Limits
plant the-hung-live hung.rs 's/if owes \&\& silent >= limit {/if owes \&\& silent >= limit * 99 {/'
plant a-sleeper-suspects hung.rs 's/if overslept {/if overslept \&\& now == Now(0) {/'
plant slow-is-hung hung.rs 's/if moved || !owes {/if !owes {/'
plant idle-is-hung hung.rs 's/u64::from) > 0$/u64::from) < u64::MAX/'
plant the-next-waits-for-the-hung life.rs '0,/self.leave_slot(i, before, Blame::ByAge);/s///'
plant the-hung-keep-their-queue salvage.rs 's/State::Aborting { .. } => self.tend_parked(i, TakeBackReason::Death, loads),/State::Aborting { .. } => {}/'
plant two-leave-at-once recycle.rs 's/            self.recycle.way = Way::Leaving { old };//;s/\&\& self.leaving().next().is_none()/\&\& self.leaving().count() < 99/'
plant recycles-in-a-reload recycle.rs 's/\&\& !self.reload.is_under_way()/\&\& self.dealer.now > Now(0)/'
plant a-failed-recycling-is-tried-at-once recycle.rs 's/not_before: self.dealer.now.after(wait),/not_before: Now(0),/'
plant all-are-of-one-age recycle.rs 's/dice.up_to(max \/ 10)/dice.up_to(0 * max)/;s/dice.up_to(nanos \/ 10)/dice.up_to(0 * nanos)/'
plant a-reload-leaves-the-recycling recycle.rs 's/        self.condemn(new);/        let _ = new;/'
plant total-is-ignored admission.rs 's/self.dealer.total(loads) + held < u64::from(max)/self.dealer.total(loads) + held < u64::from(max) + 9/'
plant nobody-rings-at-a-close admission.rs 's/if self.dealer.set_close_bells(\&mut self.actions) {/if self.actions.len() > 9999 {/'
plant sheds-too-early admission.rs 's/since.after(wait) <= now)/since.after(wait \/ 2) <= now)/'
plant never-sheds admission.rs 's/admission.verdict = Verdict::Shed(listener);/return false;/'
plant in-hand-without-bound admission.rs 's/admission.count < most {/admission.count < most + 99 {/'
plant a-bell-for-those-in-hand-is-trusted admission.rs 's/self.dealer.now.after(Duration::from_nanos(1));/self.dealer.now.after(Duration::from_secs(9));/'
plant the-newest-in-hand-goes-first admission.rs 's/line.waiting.push_back((arrival, now));/line.waiting.push_front((arrival, now));/'

# Settings that a reload brings, and takes along when it fails
plant a-time-taken-away-judges hung.rs 's/if limit.is_zero() {/if limit.is_zero() \&\& now == Now(0) {/;s/        self.hung_at = None;/        let _ = 0;/'
plant a-new-time-waits-for-a-hand-off hung.rs '0,/self.expect_hung();/s///'
plant silence-of-before-counts hung.rs 's/worker.watch = Watch::default();/let _ = Watch::default();/'
plant too-much-memory-for-ever recycle.rs 's/if matches!(worker.age.due, Some(RecycleReason::Memory(_))) {/if worker.age.due.is_none() {/'
plant limits-outlive-their-reload recycle.rs 's/if worker.age.parts_of == (limits.max_connections, limits.max_lifetime) {/if limits.max_total != Some(0) {/'
plant the-time-to-start-outlives-its-reload reload.rs 's/self.give_time_anew();/let _ = Self::give_time_anew;/'
plant a-refused-number-is-forgotten reload.rs 's/self.reload.refused = self.reload.slots.take();/self.reload.slots = None;/'
plant late-by-the-time-of-before late.rs 's/self.late_at.map(|at| at.min(now.after(stall_after)))/self.late_at/'
plant looks-at-pages-by-the-time-of-before audit.rs 's/self.next = self.next.min(now.after(pause(stall_after)));/let _ = (now, stall_after);/'
plant in-hand-by-the-wait-of-before admission.rs 's/self.admission.take_at.map(|known| known.min(at))/self.admission.take_at.map(|known| known.max(at))/'

if [ "$planted" -eq 0 ]; then
    echo "mutants: no bug of that name" >&2
    exit 2
fi
if [ -n "$survived" ]; then
    echo "$planted planted; not caught:$survived" >&2
    exit 1
fi
echo "$planted planted, $planted caught"
