package app

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
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
