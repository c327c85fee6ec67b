package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"time"

	"groupferry/importer"
	"groupferry/internal/chat"
)

// ExportConfig says what to export, and where to.
type ExportConfig struct {
	Read  ReadConfig // Begin is set by Export
	Users *importer.Plan

	// Where the rows go: to Stdout, or to File, which an export continues.
	Stdout io.Writer
	File   string
	Target string // see [Target]

	OnUnread func(UnreadUser) // is called for each user whose list is not complete
}

// An ExportReport says what came of an export. Its JSON form is read by programs: fields are added, never changed.
type ExportReport struct {
	ReadStats
	Total         int64        `json:"total"`          // users of the input
	Conversations int64        `json:"conversations"`  // that were written: rows
	Earlier       int64        `json:"earlier"`        // users that an earlier run of the same export had read
	Unread        []UnreadUser `json:"unread"`         // nothing of them was written
	File          string       `json:"file,omitempty"` //
	Complete      bool         `json:"complete"`       // all users are in it, but for the unread ones
}

// Export reads the groups of users, and writes them as the rows of an input: user by user, each of them as a whole or not at
// all. It is no picture of one instant. The errors are those of reading, and of writing; the report says how far it came.
func Export(ctx context.Context, stop <-chan struct{}, cfg ExportConfig) (r ExportReport, err error) {
	r.Total, r.File, r.Unread = cfg.Users.Summary.Users, cfg.File, []UnreadUser{}
	w := newExportWriter(cfg.Stdout)
	var file *exportFile
	if cfg.File != "" {
		users, err := digestOf(cfg.Users)
		if err == nil {
			file, err = openExport(cfg.File, users, cfg.Target)
		}
		if err != nil {
			return r, err
		}
		w.out = file
	}
	var again []UnreadUser // of an earlier run, still to be read
	cfg.Read.Begin = func() (iter.Seq2[importer.PlannedUser, error], error) {
		if file != nil {
			// Another process may have continued it while this one waited for the permits.
			if err := file.begin(); err != nil {
				return nil, err
			}
			r.Earlier, again = file.state.Users-int64(len(file.state.Unread)), file.state.Unread
		}
		if file == nil || file.state.Bytes == 0 {
			if err := w.header(); err != nil {
				return nil, err
			}
		}
		return usersAfter(cfg.Users.Users(), again, r.Earlier+int64(len(again))), nil
	}
	r.Calls, r.Seconds, err = seconds(readAll(ctx, stop, cfg.Read, func(u *UserList) error {
		r.add(u)
		if len(again) > 0 {
			again = again[1:]
		} else if file != nil {
			file.state.Users++
		}
		if u.Unread != nil {
			r.Unread = append(r.Unread, u.unread())
			cfg.OnUnread(u.unread())
		} else if err := w.user(u, &r.Conversations); err != nil {
			return err
		}
		if file != nil && time.Since(file.saved) > saveEvery {
			return w.save(file, slices.Concat(again, r.Unread))
		}
		return nil
	}))
	err = cmp.Or(err, w.flush()) // whole lines, also after a stop
	switch {
	case file == nil || file.f == nil:
	case w.err != nil: // only what was saved counts
		file.f.Close()
	default:
		err = cmp.Or(err, file.close(slices.Concat(again, r.Unread), err == nil && len(r.Unread) == 0))
	}
	r.Complete = err == nil
	return r, err
}

// digestOf is the same for the same users, wherever they come from.
func digestOf(users *importer.Plan) (string, error) {
	sum := sha256.New()
	for u, err := range users.Users() {
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%q\n", u.ID)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func seconds(calls int64, took time.Duration, err error) (int64, float64, error) {
	return calls, took.Seconds(), err
}

// usersAfter gives the users of again, and then all but the first ones.
func usersAfter(users iter.Seq2[importer.PlannedUser, error], again []UnreadUser, skip int64) iter.Seq2[importer.PlannedUser, error] {
	return func(yield func(importer.PlannedUser, error) bool) {
		for _, u := range again {
			if !yield(importer.PlannedUser{ID: u.FromAccount}, nil) {
				return
			}
		}
		for u, err := range users {
			if skip--; skip >= 0 && err == nil {
				continue
			}
			if !yield(u, err) {
				return
			}
		}
	}
}

// exportBlock is how many bytes are written at once, about: always the rows of whole users.
const exportBlock = 64 << 10

// An exportWriter writes the rows of users.
type exportWriter struct {
	out io.Writer
	buf bytes.Buffer
	csv *csv.Writer
	err error // of writing: nothing more is written after it
}

func newExportWriter(out io.Writer) *exportWriter {
	w := &exportWriter{out: out}
	w.csv = csv.NewWriter(&w.buf)
	return w
}

func (w *exportWriter) header() error { return w.csv.Write(resultColumns[:5]) }

// user adds the rows of a user, and counts them.
func (w *exportWriter) user(u *UserList, rows *int64) error {
	for _, g := range u.List.Groups {
		for _, it := range g.Items {
			fields := []string{u.ID, g.Name, strconv.Itoa(it.Type), it.ID, ""}
			if it.Type == chat.GroupChat {
				fields[3], fields[4] = "", it.ID
			}
			if err := w.csv.Write(fields); err != nil {
				return err
			}
			*rows++
		}
	}
	w.csv.Flush()
	if w.buf.Len() < exportBlock {
		return nil
	}
	return w.flush()
}

// flush writes the rows of the users so far.
func (w *exportWriter) flush() error {
	w.csv.Flush()
	if w.buf.Len() > 0 && w.err == nil {
		_, w.err = w.out.Write(w.buf.Bytes())
		w.buf.Reset()
	}
	return w.err
}

// save makes all users so far count in the file, if their rows are in it.
func (w *exportWriter) save(file *exportFile, unread []UnreadUser) error {
	if err := w.flush(); err != nil {
		return err
	}
	return file.save(unread)
}

// saveEvery is how often the progress of an export is saved. What was read since then is read again after a crash.
const saveEvery = 2 * time.Second

// An exportFile is a file that an export goes to. Until the export is complete FILE.progress stands beside it, and says how
// much of the file counts: what was written after that, whole or torn, is cut off by the next run.
type exportFile struct {
	name  string
	state exportState
	saved time.Time
	f     *os.File // nil before begin
	size  int64
	last  []byte // what this run saved last as the progress
}

// An exportState is what FILE.progress holds.
type exportState struct {
	Version int          `json:"version"`
	Digest  string       `json:"digest"` // of the users
	Target  string       `json:"target"`
	Run     string       `json:"run"`    // unlike that of any other run
	Users   int64        `json:"users"`  // the first so many were read
	Bytes   int64        `json:"bytes"`  // of the file
	Unread  []UnreadUser `json:"unread"` // of these users: to be read again
}

const exportVersion = 1

// ErrExportFile is wrapped by the error of a file that an export cannot go to.
var ErrExportFile = errors.New("the export cannot go there")

func (x *exportFile) progress() string { return x.name + ".progress" }

// openExport finds out whether an export can go to a file. It changes nothing.
func openExport(name, users, target string) (*exportFile, error) {
	x := &exportFile{name: name, state: exportState{Version: exportVersion, Digest: users, Target: target, Run: rand.Text()}}
	return x, x.load()
}

// load reads how far an earlier run has come, if there was one.
func (x *exportFile) load() error {
	info, err := os.Stat(x.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there := err == nil
	b, err := os.ReadFile(x.progress())
	switch {
	case errors.Is(err, fs.ErrNotExist) && there:
		return fmt.Errorf("%w: %s is there already, and no export that could be continued: name another file, or remove it", ErrExportFile, x.name)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	var s exportState
	if err := json.Unmarshal(b, &s); err != nil || s.Version != exportVersion {
		return fmt.Errorf("%w: %s cannot be read; to begin anew, remove it and %s", ErrExportFile, x.progress(), x.name)
	}
	if s.Digest != x.state.Digest || s.Target != x.state.Target {
		return fmt.Errorf("%w: %s is an export of other users, or of another app, that is not complete; "+
			"name another file, or remove it and %s", ErrExportFile, x.name, x.progress())
	}
	if !there && s.Bytes > 0 || there && (!info.Mode().IsRegular() || info.Size() < s.Bytes) {
		return fmt.Errorf("%w: %s is shorter than %s says; to begin anew, remove both", ErrExportFile, x.name, x.progress())
	}
	if s.Bytes > 0 && !endsLine(x.name, s.Bytes) {
		return fmt.Errorf("%w: %s was changed after %s was written; to begin anew, remove both", ErrExportFile, x.name, x.progress())
	}
	s.Run = x.state.Run
	x.state = s
	return nil
}

// endsLine reports whether the first so many bytes of a file are whole lines.
func endsLine(name string, bytes int64) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	var last [1]byte
	_, err = f.ReadAt(last[:], bytes-1)
	return err == nil && last[0] == '\n'
}

// begin opens the file where the earlier run has come to.
func (x *exportFile) begin() (err error) {
	if err = x.load(); err != nil {
		return err
	}
	if err = x.save(x.state.Unread); err != nil { // before there is a file, so that one without it is never ours
		return err
	}
	if x.f, err = os.OpenFile(x.name, os.O_WRONLY|os.O_CREATE, 0o600); err != nil {
		return err
	}
	x.size = x.state.Bytes
	if err = x.f.Truncate(x.size); err == nil {
		_, err = x.f.Seek(x.size, io.SeekStart)
	}
	return err
}

// own finds out whether another run has continued the file, because this one was frozen or they know nothing of each other:
// the progress is not what this one saved then.
func (x *exportFile) own() error {
	if b, err := os.ReadFile(x.progress()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if !bytes.Equal(b, x.last) {
		return fmt.Errorf("another export has continued %s meanwhile: it has the file now", x.name)
	}
	return nil
}

func (x *exportFile) Write(b []byte) (int, error) {
	if err := x.own(); err != nil {
		return 0, err
	}
	n, err := x.f.Write(b)
	x.size += int64(n)
	return n, err
}

// save makes what was written count, but for the users that are unread.
func (x *exportFile) save(unread []UnreadUser) error {
	if x.f != nil {
		if err := cmp.Or(x.own(), x.f.Sync()); err != nil {
			return err
		}
		x.state.Bytes = x.size
	}
	x.state.Unread, x.saved = unread, time.Now()
	b, err := json.Marshal(x.state)
	if err != nil {
		return err
	}
	next := x.progress() + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	_, err = f.Write(b)
	err = cmp.Or(err, f.Sync())
	if err = cmp.Or(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(next, x.progress()); err == nil {
		x.last = b
	}
	return err
}

// close ends the file. The progress goes when it is complete.
func (x *exportFile) close(unread []UnreadUser, complete bool) error {
	err := x.save(unread)
	err = cmp.Or(err, x.f.Close())
	if err == nil && complete {
		err = os.Remove(x.progress())
	}
	return err
}
