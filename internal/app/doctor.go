package app

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/clock"
	"groupferry/internal/governor"
	"groupferry/internal/lease"
	"groupferry/internal/queue"
)

// Doctor checks what an import needs, before there is one. Each check makes findings; what it cannot find out because another
// check failed is skipped, and says so:
//
//	settings, files ─► the way to the API ─► NATS, its user, the streams ─► namespace ─► calls ─► trial, if asked for
//
// The calls have their permits from the governor, under the lease of the leader: nobody else makes calls for the app then.
// Beside a leader that is there they have the permits of readers, which are for get_contact_group alone. Without the lease, no
// call is made. None of them writes anything but those of a trial: see trial.go.

// Results of a [Finding].
const (
	Fine    = "ok"
	Warning = "warning" // it can work like this
	Failed  = "failed"
	Skipped = "skipped" // it could not be checked
)

// A Finding is what a check found. Its JSON form is read by programs.
type Finding struct {
	Name   string `json:"name"`
	Result string `json:"result"`
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"`
}

// A DoctorReport has all findings, in their order. Its JSON form is read by programs: fields are added, never changed.
type DoctorReport struct {
	Healthy  bool      `json:"healthy"` // nothing failed
	Findings []Finding `json:"findings"`
	Trial    *Trial    `json:"trial,omitempty"`
}

// DoctorConfig says what to check.
type DoctorConfig struct {
	Settings []error      // what is wrong with them
	API      *chat.Client // nil if its settings are wrong
	Date     func() (api, here time.Time)
	App      queue.App

	Secret     string // the setting that the key or the UserSig comes from
	SecretFile string // "" if it is none
	SpoolDir   string

	Queue  *broker.Config                  // nil if its settings are wrong
	Engine func(n *Namespace) EngineConfig // is called for each engine

	TryAccount string // "" for no trial
	Admin      string

	Command   func(more ...string) string // that continues, or checks again, with more arguments
	Named     func(flag string) string    // what people call a setting
	Hint      func(err error) string      // what to do about an error; "" if nobody knows
	OnFinding func(Finding)               // is called for each, at once

	trialLimit, cleanLimit, lapseLimit time.Duration // 0: those of the same name
}

// What follows from the free space: a row takes about 130 bytes of the embedded server's disk with short ids, and more with long
// ones; sorting takes twice the size of the input.
const (
	bytesPerRow = 250
	leastSpace  = 100 << 20
	littleSpace = 1 << 30
)

// A doctor is one run of [Doctor].
type doctor struct {
	cfg    DoctorConfig
	report DoctorReport

	ns      *Namespace
	noCalls string // why no call can be made; "" if one can
	noLead  bool   // the NATS user may not lead: it may have the permits of readers

	besideWhom string // why the calls have the permits of readers

	rejected *chat.Error // of the credentials
	offers   map[chat.Command]bool
	failures map[chat.Command]*chat.Error // of those that are not offered, or do not work

	recordRevision uint64 // of the record of a trial, when it was last read or written
}

// Doctor makes all checks. The error is [ErrStopped] when stop was closed before the end; the report has what was found.
func Doctor(ctx context.Context, stop <-chan struct{}, cfg DoctorConfig) (DoctorReport, error) {
	d := &doctor{cfg: cfg, offers: map[chat.Command]bool{}}
	checking, end := untilStopped(ctx, stop)
	defer end()
	for _, check := range []func(context.Context){d.settings, d.secretFile, d.spoolDir, d.reach, d.nats, d.namespace} {
		if checking.Err() == nil {
			check(checking)
		}
	}
	if d.ns != nil {
		defer d.ns.Close()
	}
	if checking.Err() == nil {
		d.calls(ctx, stop)
	}
	d.report.Healthy = !slices.ContainsFunc(d.report.Findings, func(f Finding) bool { return f.Result == Failed })
	if checking.Err() != nil {
		return d.report, ErrStopped
	}
	return d.report, nil
}

func (d *doctor) add(name, result, what, remedy string) {
	f := Finding{name, result, what, remedy}
	d.report.Findings = append(d.report.Findings, f)
	if d.cfg.OnFinding != nil {
		d.cfg.OnFinding(f)
	}
}

func (d *doctor) ok(name, format string, args ...any) {
	d.add(name, Fine, fmt.Sprintf(format, args...), "")
}

func (d *doctor) skip(name, because string) { d.add(name, Skipped, "because "+because, "") }

// without notes why no call can be made. The first reason counts.
func (d *doctor) without(why string) { d.noCalls = cmp.Or(d.noCalls, why) }

func (d *doctor) settings(context.Context) {
	if d.cfg.API == nil {
		d.without("of the settings")
	}
	if len(d.cfg.Settings) == 0 {
		d.ok("settings", "%s, %v, admin %s", d.cfg.API.Address(), d.cfg.App, d.cfg.Admin)
		return
	}
	var texts []string
	for _, err := range d.cfg.Settings {
		texts = append(texts, err.Error())
	}
	d.add("settings", Failed, strings.Join(texts, "; "), "each is a flag, or a variable of the environment: 'groupferry doctor --help' lists them")
}

// secretFile is about the file with the key, or the UserSig. That it cannot be read is in the settings.
func (d *doctor) secretFile(context.Context) {
	const name = "key file"
	file := d.cfg.SecretFile
	if file == "" {
		return
	}
	info, err := os.Stat(file)
	var b []byte
	if err == nil {
		b, err = os.ReadFile(file)
	}
	chmod := "chmod 600 " + file
	switch {
	case err != nil:
		d.add(name, Failed, err.Error(), "let this user read the file, or name another one with "+d.cfg.Secret)
	case bytes.HasPrefix(b, []byte("\xef\xbb\xbf")):
		d.add(name, Failed, file+" begins with a byte order mark, which is no part of a key", "save it as plain text, without a byte order mark")
	case runtime.GOOS == "windows":
		d.ok(name, "%s", file)
	case info.Mode().Perm()&0o007 != 0:
		d.add(name, Failed, fmt.Sprintf("%s: mode %04o: all users of this host may read it", file, info.Mode().Perm()), chmod)
	case info.Mode().Perm()&0o070 != 0:
		d.add(name, Warning, fmt.Sprintf("%s: mode %04o: its group may read it", file, info.Mode().Perm()), chmod)
	default:
		d.ok(name, "%s: mode %04o", file, info.Mode().Perm())
	}
}

func (d *doctor) spoolDir(context.Context) {
	d.directory("spool directory", cmp.Or(d.cfg.SpoolDir, os.TempDir()), d.cfg.Named("spool-dir"), false)
}

// directory finds out whether a directory can be written to, and how much. A private one is made, and should be its owner's.
func (d *doctor) directory(name, dir, setting string, private bool) (usable bool) {
	var err error
	if private {
		err = os.MkdirAll(dir, 0o700)
	}
	var f *os.File
	if err == nil {
		f, err = os.CreateTemp(dir, ".groupferry-doctor-*")
	}
	if err == nil {
		_, err = f.Write([]byte("x"))
		err = cmp.Or(err, f.Close())
		err = cmp.Or(os.Remove(f.Name()), err)
	}
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		d.add(name, Failed, fmt.Sprintf("%s cannot be written to: %v", dir, err), "let this user write there, make room, or name another one with "+setting)
		return false
	}
	free, known := freeSpace(dir)
	room := "free space is not known here"
	if known {
		room = fmt.Sprintf("%s free, for some %s rows", size(free), Count(free/bytesPerRow/1000*1000))
	}
	info, err := os.Stat(dir)
	switch {
	case known && free < leastSpace:
		d.add(name, Failed, dir+": "+room, "make room, or name a directory on another disk with "+setting)
		return true
	case known && free < littleSpace:
		d.add(name, Warning, dir+": "+room, "make room, or name a directory on another disk with "+setting)
	case private && err == nil && info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows":
		d.add(name, Warning, fmt.Sprintf("%s: mode %04o: others may read ids of people there; %s", dir, info.Mode().Perm(), room), "chmod 700 "+dir)
	default:
		d.ok(name, "%s: %s", dir, room)
	}
	return true
}

func size(bytes int64) string {
	for _, unit := range []string{"bytes", "KiB", "MiB", "GiB"} {
		if bytes < 10<<10 || unit == "GiB" {
			return Count(bytes) + " " + unit
		}
		bytes >>= 10
	}
	return ""
}

// reach tries the way to the API: no call is made.
func (d *doctor) reach(ctx context.Context) {
	const name = "API"
	if d.cfg.API == nil {
		d.skip(name, "of the settings")
		return
	}
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	address := d.cfg.API.Address()
	err := d.cfg.API.Reach(bounded)
	region := d.cfg.Named("region") + " or " + d.cfg.Named("api-url")
	switch {
	case err != nil:
		d.without("the API is out of reach")
		remedy := map[string]string{
			chat.StageDNS: "check " + region + ", and the name server of this host",
			chat.StageTCP: "check " + region + ", and that a firewall lets this host connect; HTTPS_PROXY names a proxy",
			chat.StageTLS: "check " + region + "; something on the way that decrypts needs its authority in SSL_CERT_FILE",
		}[chat.StageOf(err)]
		d.add(name, Failed, chat.StageOf(err)+": "+err.Error(), remedy)
	case chat.InsecureURL(address):
		d.add(name, Warning, address+": connected, but not encrypted: whoever listens can read the UserSig", "use https in "+d.cfg.Named("api-url"))
	case strings.HasPrefix(address, "https:"):
		d.ok(name, "%s: connected, with TLS", address)
	default:
		d.ok(name, "%s: connected", address)
	}
}

// nats opens the queue as an import does, and so makes the streams if they are not there.
func (d *doctor) nats(ctx context.Context) {
	cfg := d.cfg.Queue
	if cfg == nil {
		d.without("of the settings")
		d.skip("NATS", "of the settings")
		return
	}
	embedded := cfg.URL == "" && cfg.Context == ""
	if embedded && !d.directory("data directory", cfg.DataDir, d.cfg.Named("data-dir"), true) {
		d.without("the data directory cannot be used")
		d.skip("NATS", "the data directory cannot be used")
		return
	}
	n, err := connect(ctx, *cfg)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		d.without("NATS cannot be used: calls would count against no limit")
		d.add("NATS", Failed, err.Error(), d.natsRemedy(err))
		return
	}
	l, err := n.Conn.Limits(ctx)
	switch {
	case err != nil:
		d.add("NATS", Failed, err.Error(), d.natsRemedy(err))
	case embedded && !n.Conn.Embedded():
		d.ok("NATS", "%s, which another process runs: nats-server %s, JetStream", n.Where(), l.Version)
	default:
		d.ok("NATS", "%s: nats-server %s, JetStream", n.Where(), l.Version)
	}
	if !embedded {
		d.natsLimits(l)
		d.natsUser(ctx, n)
	}
	if err := n.openQueue(ctx); err != nil {
		d.without("the streams cannot be used")
		remedy := d.natsRemedy(err)
		switch {
		case strings.Contains(err.Error(), "maximum number of streams"):
			remedy = "allow the account more streams, or use another one: a namespace has five"
		case cfg.Replicas > 1 && strings.Contains(err.Error(), "replicas"):
			remedy = fmt.Sprintf("use a cluster of %d servers or more, or fewer %s", cfg.Replicas, d.cfg.Named("replicas"))
		}
		d.add("streams", Failed, err.Error(), remedy)
		return
	}
	d.ns = n
	have, want := n.Replicas(), n.Conn.Replicas()
	if have != want {
		d.add("streams", Warning, fmt.Sprintf("they are there with %d copies, not %d: %s counts only when they are made", have, want, d.cfg.Named("replicas")),
			fmt.Sprintf("nats stream edit %[1]s-jobs --replicas %[2]d, and likewise %[1]s-results, KV_%[1]s-control, KV_%[1]s-lease and OBJ_%[1]s-snapshots", n.Conn.Namespace(), want))
		return
	}
	d.ok("streams", "those of namespace %s are there, with %d %s", n.Conn.Namespace(), have, map[bool]string{true: "copy", false: "copies"}[have == 1])
}

// natsRemedy says what to do about an error of NATS.
func (d *doctor) natsRemedy(err error) string {
	if hint := d.cfg.Hint(err); hint != "" {
		return hint
	}
	url := d.cfg.Named("nats-url")
	switch {
	case errors.Is(err, broker.ErrTooOld):
		return "install nats-server 2.12 or newer, or name another one with " + url + "; without one, the embedded server is used"
	case errors.Is(err, broker.ErrNoJetStream):
		return "enable JetStream for the server and for the account of this user, or name another server with " + url
	case errors.Is(err, broker.ErrSchema):
		return "name another namespace with " + d.cfg.Named("namespace") + ", or use that version"
	case errors.Is(err, broker.ErrUnreachable):
		return "start it, or check " + url + " and the way there"
	}
	return "check " + url + ", " + d.cfg.Named("namespace") + " and the server"
}

// leastPayload is what a record of an import with many files takes, and far more than a job.
const leastPayload = 1 << 20

func (d *doctor) natsLimits(l broker.Limits) {
	const name = "NATS limits"
	what := fmt.Sprintf("max_payload %s", size(l.MaxPayload))
	left := int64(math.MaxInt64)
	switch {
	case !l.Known:
		what += "; the account's are not known, for this user may not ask"
	case l.Storage < 0:
		what += "; storage of the account: no limit"
	default:
		left = l.Storage - l.Used
		what += fmt.Sprintf("; storage of the account: %s left, for some %s rows", size(left), Count(max(0, left/bytesPerRow/1000*1000)))
	}
	switch {
	case l.MaxPayload < leastPayload:
		d.add(name, Failed, what+": a message may need 1 MiB", "set max_payload: 1MB in the configuration of the NATS server")
	case left < leastSpace:
		d.add(name, Failed, what, "give the account more storage: max_file in its jetstream block, or its JWT")
	case left < littleSpace:
		d.add(name, Warning, what, "give the account more storage: max_file in its jetstream block, or its JWT")
	default:
		d.add(name, Fine, what, "")
	}
}

// natsUser tries what the user may publish.
func (d *doctor) natsUser(ctx context.Context, n *Namespace) {
	const name = "NATS user"
	var may, mayNot []string
	can := map[string]bool{}
	var lacks []string
	for _, need := range queue.Needs(n.Conn) {
		denied, err := n.Conn.Denies(ctx, need.Subjects)
		if err != nil {
			d.add(name, Failed, err.Error(), d.natsRemedy(err))
			return
		}
		lacks = append(lacks, denied...)
		if can[need.Commands] = len(denied) == 0; can[need.Commands] {
			may = append(may, need.Commands)
		} else {
			mayNot = append(mayNot, need.Commands+" (denied: "+strings.Join(denied, ", ")+")")
		}
	}
	remedy := "allow the user to publish that, as deploy/nats/groupferry.conf does, or name another user in NATS_URL or NATS_CREDS"
	switch {
	case len(mayNot) == 0:
		d.ok(name, "may do all: %s", strings.Join(may, ", "))
	case !can["import"] && !can["work"]:
		d.add(name, Failed, "may neither import nor work: "+strings.Join(mayNot, "; "), remedy)
	default:
		d.add(name, Warning, "may "+strings.Join(may, ", ")+"; not "+strings.Join(mayNot, "; "), remedy)
	}
	leader, reader := n.Conn.LeaseSubject(broker.LeaderLease), n.Conn.LeaseSubject(broker.ReaderLease)
	if d.noLead = slices.Contains(lacks, leader); d.noLead && slices.Contains(lacks, reader) {
		d.without("this NATS user may not write the lease: calls would count against no limit")
	}
}

// namespace is about what earlier commands left.
func (d *doctor) namespace(ctx context.Context) {
	const name = "namespace"
	if d.ns == nil {
		d.skip(name, "NATS cannot be used")
		return
	}
	have, err := d.ns.App(ctx)
	var other error
	if err == nil && have != nil && *have != d.cfg.App && d.cfg.App.SDKAppID != 0 {
		other = &queue.OtherAppError{Want: d.cfg.App, Have: *have}
	}
	switch {
	case err != nil:
		d.add(name, Failed, err.Error(), d.natsRemedy(err))
	case other != nil:
		d.without("the namespace belongs to another app")
		d.add(name, Failed, other.Error(), d.cfg.Hint(other))
	case have == nil:
		d.ok(name, "%s: of no app yet", d.ns.Conn.Namespace())
	default:
		d.ok(name, "%s: of %v", d.ns.Conn.Namespace(), *have)
	}
	s, err := d.ns.Status(ctx)
	if err != nil {
		d.add("imports", Failed, err.Error(), d.natsRemedy(err))
		return
	}
	if h := s.Halt; h != nil {
		if h.State == queue.Paused {
			d.without("the namespace is paused")
		}
		remedy := d.ns.Conn.Command("resume")
		if h.State == queue.Halted {
			remedy = strings.TrimPrefix(h.Remedy+", then call '"+cmp.Or(h.Command, remedy)+"'", ", then ")
		}
		d.add("halt", Failed, (&StandingHalt{*h}).Error()+": no job is done", remedy)
	}
	if rate, err := d.ns.Rate(ctx); err == nil && rate > 0 {
		d.add("rate", Warning, fmt.Sprintf("%d calls a second are set for the namespace: they go before %s", rate, d.cfg.Named("rate")),
			d.ns.Conn.Command("rate", "0"))
	}
	var open []string
	for _, i := range s.Imports {
		if !i.Over() {
			open = append(open, fmt.Sprintf("%s (%s, %s jobs left)", i.Import, i.State, Count(i.Jobs.Pending)))
		}
	}
	switch {
	case s.Damaged != nil:
		d.add("imports", Failed, s.Damaged.Error(), d.natsRemedy(s.Damaged))
	case len(open) > 0:
		d.add("imports", Warning, "not over: "+strings.Join(open, ", "), "the next run or work continues them; '"+d.ns.Conn.Command("cancel", "IMPORT")+"' drops what has not started")
	case len(s.Imports) == 0:
		d.ok("imports", "there are none")
	default:
		d.ok("imports", "%s, all over", Count(int64(len(s.Imports))))
	}
	d.otherNamespaces(ctx)
}

// renewedBy is when a lease that somebody has is renewed, twice over.
const renewedBy = time.Second

// otherNamespaces looks for a leader of the same app in another namespace of the server: neither knows of the calls of the other.
func (d *doctor) otherNamespaces(ctx context.Context) {
	names, err := d.ns.Conn.Namespaces(ctx)
	if err != nil { // the user may not ask, and an operator keeps one namespace per app
		return
	}
	for _, name := range names {
		app, err := d.ns.AppOf(ctx, name)
		if name == d.ns.Conn.Namespace() || err != nil || app == nil || *app != d.cfg.App {
			continue
		}
		store := d.ns.Conn.LeaseOf(name, broker.LeaderLease)
		before, _, err := lease.Read(ctx, store)
		if err != nil || before.Term == 0 || before.Released || !clock.Pause(ctx, renewedBy) {
			continue
		}
		if now, _, err := lease.Read(ctx, store); err == nil && now.Renewal != before.Renewal {
			d.add("namespaces", Failed, fmt.Sprintf("%s leads in namespace %s, and makes calls for the same app: together they can exceed its limit", now.Host, name),
				"stop it, or use that namespace with "+d.cfg.Named("namespace"))
		}
	}
}

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
