package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/clock"
	"groupferry/internal/governor"
)

// calls makes all checks for which the API is called.
func (d *doctor) calls(ctx context.Context, stop <-chan struct{}) {
	if d.noCalls == "" {
		var err error
		var leads *leadingError
		if !d.noLead {
			err = d.run(ctx, stop, false)
		}
		switch {
		case d.noLead:
			err = d.beside(ctx, stop, "this NATS user may not lead")
		case errors.As(err, &leads):
			err = d.beside(ctx, stop, leads.host+" leads")
		}
		switch {
		case isClosed(stop) || ctx.Err() != nil:
			return
		case errors.As(err, new(*ReadingError)), errors.Is(err, errNoLease):
			d.noCalls = err.Error()
		case err != nil:
			d.add("calls", Failed, err.Error(), cmp.Or(d.cfg.Hint(err), "call '"+d.cfg.Command()+"' again"))
			return
		}
	}
	if d.noCalls == "" {
		return
	}
	d.skipCalls(d.noCalls, "credentials", "clock", "commands", "round trip")
}

// skipCalls skips checks, and the trial if there was to be one.
func (d *doctor) skipCalls(because string, names ...string) {
	for _, name := range names {
		d.skip(name, because)
	}
	if d.cfg.TryAccount != "" {
		d.add(tryAccount, Failed, "not tried, because "+because, "do what is said above, then call '"+d.cfg.Command()+"' again")
	}
}

// beside makes the checks that are possible while another process leads.
func (d *doctor) beside(ctx context.Context, stop <-chan struct{}, why string) error {
	d.besideWhom = why
	return d.run(ctx, stop, true)
}

// run makes the calls under a lease.
func (d *doctor) run(ctx context.Context, stop <-chan struct{}, beside bool) error {
	cfg := d.cfg.Engine(d.ns)
	leasing, cancel := context.WithCancel(ctx)
	defer cancel()
	overdue, lost := time.AfterFunc(leaseLimit, cancel), false
	cfg.LeaveOnHalt, cfg.BesideLeader = true, beside
	cfg.Examine = func(ctx context.Context, stop <-chan struct{}, e *Engine, pace *governor.Governor) error {
		if !overdue.Stop() {
			return errNoLease
		}
		examining, end := context.WithCancel(ctx)
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			if e.awaitLapse(examining, cmp.Or(d.cfg.lapseLimit, lapseLimit)) {
				cancel()
			}
		}()
		err := d.examine(ctx, stop, e, pace)
		end()
		<-watched
		if lost = ctx.Err() != nil; lost {
			cancel() // instead of waiting for another lease
		}
		return err
	}
	e, err := NewEngine(ctx, cfg)
	if err == nil {
		err = e.Run(leasing, stop)
	}
	switch {
	case err != nil || ctx.Err() != nil:
	case lost:
		err = errLeaseLost
	case leasing.Err() != nil:
		err = errNoLease
	}
	return err
}

// leaseLimit is how long the lease is waited for. It takes three seconds when its holder was killed.
const leaseLimit = 20 * time.Second

// awaitLapse reports whether the lease could not be renewed for so long, before ctx ended: no call is permitted then.
func (e *Engine) awaitLapse(ctx context.Context, limit time.Duration) bool {
	for e.state.await(ctx, func(s *State) bool { return s.Lapsed }) == nil {
		if !clock.Pause(ctx, limit) {
			return false
		}
		if s, _ := e.state.get(); s.Lapsed {
			return true
		}
	}
	return false
}

// lapseLimit is how long NATS may be out of reach while calls are made.
const lapseLimit = 15 * time.Second

var (
	errNoLease   = fmt.Errorf("the lease could not be had within %v: calls would count against no limit", leaseLimit)
	errLeaseLost = errors.New("the lease was lost: NATS was out of reach, or this process stood still; no more calls were made")
)

// callsLimit bounds the calls that write nothing: twelve, if none is repeated.
const callsLimit = time.Minute

// examine makes the calls that this process has permits for.
func (d *doctor) examine(ctx context.Context, stop <-chan struct{}, e *Engine, pace *governor.Governor) error {
	if e.besideLeader() && readerShare("", e.effectiveRate()) == 0 {
		d.noCalls = d.besideWhom + ", and a rate of 1 has no half for another process"
		return nil
	}
	began := time.Now()
	calling, end := untilStopped(ctx, stop)
	defer end()
	bounded, cancel := context.WithTimeout(calling, callsLimit)
	defer cancel()
	err := d.credentials(bounded, e, pace)
	d.clock()
	if errors.Is(err, errNoCredentials) {
		d.skipCalls(err.Error(), "commands", "round trip")
		return nil
	}
	if err == nil {
		err = d.commands(bounded, e, pace)
	}
	if err == nil {
		err = d.roundTrip(bounded, e, pace)
	}
	if calling.Err() == nil && bounded.Err() != nil {
		d.add("calls", Failed, fmt.Sprintf("not all ended within %v", callsLimit), "look at the API's console, and at the way there")
		return nil
	}
	switch {
	case err != nil:
		return err
	case !e.besideLeader() || d.cfg.TryAccount == "": // without one, it only says what is left
		return d.trial(ctx, stop, e, pace, began)
	default:
		d.add(tryAccount, Failed, "not tried, because "+d.besideWhom, "stop all workers, or use a NATS user who may do it, then call '"+d.cfg.Command()+"'")
	}
	return nil
}

// credentials makes a call for the admin account, as a worker does before its first job.
func (d *doctor) credentials(ctx context.Context, e *Engine, pace *governor.Governor) error {
	const name = "credentials"
	err := e.checkCredentials(ctx, pace)
	if err == nil {
		d.ok(name, "the API accepts %s, and the app's edition has conversation groups", d.cfg.Admin)
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	what, remedy := err.Error(), "look whether the API, or what is on the way to it, has an outage"
	if errors.As(err, &d.rejected) && !errors.Is(err, ErrAPIUnreachable) {
		what, remedy = d.rejected.Error(), d.remedy(d.rejected)
	}
	d.add(name, Failed, what, remedy)
	return errNoCredentials
}

// errNoCredentials says that no other call makes sense.
var errNoCredentials = errors.New("the credentials are not accepted")

// remedy adds the settings to what to do about an error of the API.
func (d *doctor) remedy(e *chat.Error) string {
	remedy := cmp.Or(e.Remedy(), "see what the vendor's documents say about it")
	address := d.cfg.Named("region") + " or " + d.cfg.Named("api-url")
	var settings string
	switch haltReason(e.Reason()) {
	case Address:
		settings = address
	case OfApp:
		settings = d.cfg.Named("sdk-app-id") + ", " + address
	case Credentials:
		settings = d.cfg.Named("admin") + ", " + d.cfg.Named("sdk-app-id") + ", " + d.cfg.Secret
	}
	if settings != "" {
		remedy += " (" + settings + ")"
	}
	return remedy
}

const (
	exactClock   = 2 * time.Second // the API tells seconds
	goodClock    = time.Minute
	sigLifetime  = 24 * time.Hour // of a UserSig that is made from the key
	sigEndsSoon  = 24 * time.Hour
	clockRemedy  = "set this host's clock, and have it kept by NTP: timedatectl set-ntp true"
	usersigSoon  = "get a new UserSig, or give the secret key with --secret-key-file"
	clockOf      = "clock"
	clockMatters = "a UserSig made here counts from this clock, and is refused from 24 h behind on"
)

// clock compares this host's clock with the Date of the last response.
func (d *doctor) clock() {
	api, here := d.cfg.Date()
	if api.IsZero() {
		d.skip(clockOf, "no response had a date")
		return
	}
	ahead := here.Sub(api)
	off := ahead.Abs().Round(time.Second)
	if off > goodClock {
		off = off.Round(time.Minute)
	}
	what := "agrees with that of the API"
	if off > exactClock {
		what = fmt.Sprintf("%v %s that of the API", off, map[bool]string{true: "ahead of", false: "behind"}[ahead > 0])
	}
	refused := -ahead >= sigLifetime || off > goodClock && d.rejected != nil && d.rejected.Class() == chat.Refresh
	expiry := d.cfg.API.SigExpiry()
	ready := !d.cfg.API.Renews() && !expiry.IsZero()
	switch {
	case ready && expiry.Before(api):
		d.add(clockOf, Failed, fmt.Sprintf("%s; the UserSig has ended at %s", what, expiry.Local().Format(time.DateTime)), usersigSoon)
	case ready && expiry.Before(api.Add(sigEndsSoon)):
		d.add(clockOf, Warning, fmt.Sprintf("%s; the UserSig ends at %s", what, expiry.Local().Format(time.DateTime)), usersigSoon)
	case refused && !ready:
		d.add(clockOf, Failed, what+": "+clockMatters, clockRemedy)
	case off > goodClock:
		d.add(clockOf, Warning, what+": "+clockMatters, clockRemedy)
	default:
		d.ok(clockOf, "%s", what)
	}
}

// Without these commands it works otherwise, or not at all.
var withoutCommand = map[chat.Command]struct{ what, remedy string }{
	chat.CreateContactGroup: {"no group can be made", ""},
	chat.UpdateContactGroup: {"each group is read, and written as a whole with create: of a group of more than 100 conversations the rest fails as needs-update, and a mirror takes nothing out", ""},
	chat.GetContactGroup:    {"groups cannot be read back: export and verify do not work", ""},
	chat.DelContactGroup:    {"a mirror leaves groups empty that it would delete", ""},
}

// commands finds out which commands are offered. All but get are called for a user and a group whose names are longer than any
// can be, and without a conversation. Empty ones could be taken for the caller, or for all groups.
func (d *doctor) commands(ctx context.Context, e *Engine, pace *governor.Governor) error {
	const nobody = "groupferry-doctor-asks-what-is-offered" // 38 bytes: a user has 32 at most, and so has a group
	api := e.cfg.API
	calls := map[chat.Command]func(context.Context) error{
		chat.GetContactGroup: func(ctx context.Context) error { _, err := api.Get(ctx, d.cfg.Admin, 0); return err },
		chat.CreateContactGroup: func(ctx context.Context) error {
			_, err := api.Create(ctx, chat.CreateRequest{FromAccount: nobody, GroupName: nobody})
			return err
		},
		chat.UpdateContactGroup: func(ctx context.Context) error {
			_, err := api.Update(ctx, chat.UpdateRequest{FromAccount: nobody, GroupName: nobody})
			return err
		},
		chat.DelContactGroup: func(ctx context.Context) error { return api.Delete(ctx, nobody, nobody) },
	}
	d.failures = map[chat.Command]*chat.Error{}
	var missing []string
	for _, c := range chat.Commands() {
		if e.besideLeader() && c != chat.GetContactGroup {
			continue
		}
		failure, err := d.offered(ctx, e, pace, c, calls[c])
		if err != nil {
			return err
		}
		d.failures[c] = failure
		if d.offers[c] = failure == nil; !d.offers[c] {
			missing = append(missing, string(c))
		}
	}
	for _, c := range chat.Commands() {
		failure := d.failures[c]
		if failure == nil {
			continue
		}
		result, what := Warning, withoutCommand[c].what
		remedy := "ask the vendor for " + string(c) + ", or live with that: deploy/README.md says how, under \"What a group holds stays\""
		switch {
		case c == chat.CreateContactGroup, !failure.NotOffered():
			result, remedy = Failed, d.remedy(failure)
		case c == chat.UpdateContactGroup && !d.offers[chat.GetContactGroup] && !e.cfg.Worker.AcceptReplace && !e.besideLeader():
			result, what = Failed, "neither is get_contact_group: nothing is written, for create may empty a group"
			remedy = "check " + d.cfg.Named("region") + " or " + d.cfg.Named("api-url") + "; --accept-replace writes all the same"
		}
		why := "not offered"
		if !failure.NotOffered() {
			why = "refused"
		}
		d.add(string(c), result, fmt.Sprintf("%s (%s): %s", why, failure.Reason(), what), remedy)
	}
	switch {
	case e.besideLeader():
		d.skip("commands", d.besideWhom+": only get_contact_group can be called beside a leader")
	case len(missing) == 0:
		d.ok("commands", "create, update, get and del are offered")
	}
	return nil
}

const (
	offerTries = 5
	offerPause = 500 * time.Millisecond
)

// offered calls a command; it is offered if the API itself responds. HTTP 404 has to last, for something in between can
// respond with that. The failure is nil then, or says why not; the error is about ctx and the pace.
func (d *doctor) offered(ctx context.Context, e *Engine, pace *governor.Governor, c chat.Command, do func(context.Context) error) (*chat.Error, error) {
	for tries := 1; ; tries++ {
		failure, err := e.callOnce(ctx, pace, c, do)
		switch {
		case failure == nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case failure.Code == chat.CodeNotOffered, failure.Class() == chat.Halt:
			return failure, nil
		case failure.Code != 0 && failure.Class() != chat.Throttle && failure.Class() != chat.Retry:
			return nil, nil
		case tries == offerTries && failure.Code == 0:
			return failure, nil
		case tries == offerTries:
			return nil, nil
		}
		if !clock.Pause(ctx, offerPause) {
			return nil, ctx.Err()
		}
	}
}

// trips is how many calls are made to see how long one takes.
const trips = 7

func shortly(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// roundTrip measures calls, and says what the rate takes: calls in flight = rate × the time of one.
func (d *doctor) roundTrip(ctx context.Context, e *Engine, pace *governor.Governor) error {
	var took []time.Duration
	for range trips {
		start := time.Time{}
		failure, err := e.callOnce(ctx, pace, chat.GetContactGroup, func(ctx context.Context) error {
			start = time.Now()
			_, err := e.cfg.API.Get(ctx, d.cfg.Admin, 0)
			return err
		})
		switch {
		case failure == nil && err != nil:
			return err
		case failure == nil || failure.Code != 0 || failure.NotOffered():
			took = append(took, time.Since(start))
		}
	}
	const name = "round trip"
	if len(took) == 0 {
		d.add(name, Failed, "no call had a response", "look whether the API, or what is on the way to it, has an outage")
		return nil
	}
	slices.Sort(took)
	trip := took[len(took)/2]
	rate, slots := e.effectiveRate(), e.cfg.Worker.Concurrency
	perSecond := func(calls float64) int { return int(math.Ceil(float64(rate) * calls * trip.Seconds())) }
	// A permit rests for a second after its call, less half of the shortest round trip: see internal/governor.
	allowed := float64(rate) / (1 + trip.Seconds() - took[0].Seconds()/2)
	need := perSecond(2) // an update before each create
	what := fmt.Sprintf("%v, at most %v in %d calls: %d calls a second are %d in flight, and %d with an update before each create",
		shortly(trip), shortly(took[len(took)-1]), len(took), rate, perSecond(1), need)
	concurrency := d.cfg.Named("concurrency")
	switch {
	case need > slots:
		d.add(name, Warning, fmt.Sprintf("%s; %s %d is not enough: about %d a second", what, concurrency, slots, int(float64(slots)/(2*trip.Seconds()))),
			fmt.Sprintf("--concurrency %d", (need+need/4+9)/10*10))
	case allowed < 0.9*float64(rate):
		d.add(name, Warning, fmt.Sprintf("%s; a permit rests for a second after its call, so about %d a second are possible", what, int(allowed)),
			"run it nearer to the API, or plan for an import that takes longer")
	default:
		d.ok(name, "%s; %s %d is enough", what, concurrency, slots)
	}
	return nil
}
