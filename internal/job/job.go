// Package job is the contract between importer and worker: the job that travels on the stream, the result that
// comes back, their ids and their wire form.
//
//	importer ──► Job ──► jobs stream ──► worker ──► Result ──► results stream ──► report, export, retry
//
// A job is one group to be written: the conversations that one user wants to see under one name. A result is the
// one final fact about a job. Each conversation keeps the file and the line it came from, all the way into the
// result, so that every row of an input can be accounted for.
//
// The wire form is JSON with a version. A reader refuses a version that it does not know with [ErrVersion] and never
// guesses; it takes fields that it does not know in a version that it does, so that fields can be added.
//
// It is written by hand, as that is most of what a row costs an import beside reading it, and read by struct tags.
package job

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Version is the wire version that this package writes, and the newest that it reads.
const Version = 1

// ErrVersion is wrapped by the error of a decode that met a wire version this binary does not know.
var ErrVersion = errors.New("made by a newer groupferry")

// The types of a conversation, as the API numbers them.
const (
	OneToOne  = 1 // the id is a user id
	GroupChat = 2 // the id is a group id
)

// An Op is what a job is to do with a conversation.
type Op string

// The operations.
const (
	Add    Op = ""       // put it into the group
	Remove Op = "remove" // take it out of the group
	Keep   Op = "keep"   // wanted, and in the group as far as the sync knows; sent only if the group has to be created anew
)

// A Conversation is what is put into a group or taken out of it, with the place in the input that asked for it.
type Conversation struct {
	Type int    `json:"type"` // OneToOne or GroupChat
	ID   string `json:"id"`   // user id or group id, as Type says
	Op   Op     `json:"op"`   // what to do with it
	File int    `json:"file"` // which input of the import, from 0; the import's record has its name
	Line int64  `json:"line"` // physical line in that file, from 1; 0 where no row asked for it, as for a removal

	// Again says that a sync sent it in an earlier night, and that it is not known to be in the group since.
	Again bool `json:"again"`
}

// A Job is one group to be written. In a retry it has the conversations that failed before and are wanted again; the
// others are in the result that it is going to replace. What the group holds beyond the conversations that the job names
// is left as it is, by every job.
type Job struct {
	Import        string         `json:"import"`       // import ID
	ID            string         `json:"job"`          // [ID] of the import, the user and the group name
	FromAccount   string         `json:"from_account"` // the user whose group it is
	GroupName     string         `json:"group_name"`
	OldName       string         `json:"old_name"`   // the group has this name and is renamed to GroupName first; "" for no rename
	Delete        bool           `json:"delete"`     // nothing is wanted in the group any more: all conversations are Remove
	Generation    int            `json:"generation"` // 0 at first; the n-th retry of the import makes it n
	Prior         uint64         `json:"prior"`      // in a retry: the sequence, on the results stream, of the result that it is going to replace
	Conversations []Conversation `json:"conversations"`
}

// Outcome says how a job ended.
type Outcome string

const (
	Done    Outcome = "done"    // every conversation is in the group, or out of it, as the job asked
	Partial Outcome = "partial" // some are, some failed
	Failed  Outcome = "failed"  // none of them is known to be
)

// Outcomes lists all outcomes, in the order in which reports name them.
var Outcomes = []Outcome{Done, Partial, Failed}

// A ConversationResult says what became of one conversation.
type ConversationResult struct {
	Conversation
	Code string `json:"code"` // "" when it is in the group, or out of it, as its Op asks; else the API's code, or a reason where no response had one
	Info string `json:"info"` // the API's text for a code, for people; never branch on it
	Kept bool   `json:"kept"` // the job keeps it, and it was sent because the group had to be created anew
}

// CodeNotRenamed is the code of a job whose group could not be renamed because there is another one of the new name; and of
// what it was to take out, for that is in the group of the old name, which is left as it is.
const CodeNotRenamed = "not-renamed"

// Gone reports whether a removal that failed with a code is recorded once and not tried again every night. The user or the
// group chat is not there any more (50001, 51007), so nobody can take it out. Or what is to be removed was never put into
// this group ([CodeNotRenamed]); what is there under its id is somebody else's.
func Gone(code string) bool { return code == "50001" || code == "51007" || code == CodeNotRenamed }

// A Result is the one final fact about a job. It holds all that a retry needs. It has the conversations that the job
// adds or removes; one that the job keeps is in it only if it was sent, in a group that had to be created anew: then as
// one that was added.
type Result struct {
	Import        string               `json:"import"`
	Job           string               `json:"job"` // the job's ID
	FromAccount   string               `json:"from_account"`
	GroupName     string               `json:"group_name"`
	OldName       string               `json:"old_name"` // the group had this name, and was renamed
	Deleted       bool                 `json:"deleted"`  // the group is gone: it was deleted, or did not exist
	Anew          bool                 `json:"anew"`     // the group was gone, and what the result names is all that was put into the new one
	GroupID       int64                `json:"group_id"` // as the API numbered the group; 0 when no call told
	Outcome       Outcome              `json:"outcome"`
	Code          string               `json:"code"` // why the job as a whole failed, if its conversations do not say it
	Info          string               `json:"info"`
	Generation    int                  `json:"generation"` // of the job that led to it
	Replaces      uint64               `json:"replaces"`   // the sequence of the result that this one supersedes; 0 when it is the job's first
	Attempts      int                  `json:"attempts"`   // attempts that this result took, over all generations
	Calls         int                  `json:"calls"`      // calls that this result took, over all generations and all attempts of the workers that wrote it
	Conversations []ConversationResult `json:"conversations"`
	Started       time.Time            `json:"started"` // first attempt, by the worker's clock
	Finished      time.Time            `json:"finished"`
	Worker        string               `json:"worker"` // who wrote the result

	// What a retry of a failed job needs beyond that, as the job had it.
	Rename string         `json:"rename"` // the OldName of a rename that was not done
	Delete bool           `json:"delete"` // the job was to delete the group
	Keep   []Conversation `json:"keep"`   // the conversations to be sent if the group has to be created anew
}

// CodeUndecodable is the code of a result for a message that is no job this binary can read. Such a result has no
// conversations: they are not known.
const CodeUndecodable = "undecodable"

// SetOutcome sets the outcome from the codes of the conversations.
func (r *Result) SetOutcome() {
	failed := r.FailedConversations()
	switch {
	case failed == 0 && r.Code == "":
		r.Outcome = Done
	case failed == len(r.Conversations):
		r.Outcome = Failed
	default:
		r.Outcome = Partial
	}
}

// FailedConversations counts the conversations that are not in the group, or not out of it, as the job asked.
func (r *Result) FailedConversations() int {
	n := 0
	for i := range r.Conversations {
		if r.Conversations[i].Code != "" {
			n++
		}
	}
	return n
}

// ID names the job that writes one group of one user in one import: 80 bits of SHA-256 in 16 characters of a–z and
// 2–7, so that ten million jobs share an id with a chance of one in 20 billion.
func ID(importID, fromAccount, groupName string) string {
	b := make([]byte, 0, 128)
	for _, s := range []string{importID, fromAccount, groupName} {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, ':')
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return idEncoding.EncodeToString(sum[:10])
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// MaxImportID is the longest import ID in bytes: it becomes a token of subjects and of a key.
const MaxImportID = 64

// ValidImportID reports whether s can be an import ID: 1 to [MaxImportID] of A–Z, a–z, 0–9, - and _.
func ValidImportID(s string) bool {
	if s == "" || len(s) > MaxImportID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// AppendJSON appends the wire form of j to b: one JSON object whose conversations stand one to a line.
// Strings are UTF-8; what is not comes out as U+FFFD.
func (j *Job) AppendJSON(b []byte) []byte {
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, Version, 10)
	b = appendField(b, "import", j.Import)
	b = appendField(b, "job", j.ID)
	b = appendField(b, "from_account", j.FromAccount)
	b = appendField(b, "group_name", j.GroupName)
	b = appendText(b, "old_name", j.OldName)
	b = appendFlag(b, "delete", j.Delete)
	b = appendGeneration(b, j.Generation, "prior", j.Prior)
	return append(appendConversations(b, "conversations", j.Conversations), '}')
}

// AppendJSON appends the wire form of r to b, in the same shape as a job's.
func (r *Result) AppendJSON(b []byte) []byte {
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, Version, 10)
	b = appendField(b, "import", r.Import)
	b = appendField(b, "job", r.Job)
	b = appendField(b, "from_account", r.FromAccount)
	b = appendField(b, "group_name", r.GroupName)
	b = appendText(b, "old_name", r.OldName)
	b = appendFlag(b, "deleted", r.Deleted)
	b = appendFlag(b, "anew", r.Anew)
	b = appendInt(b, "group_id", r.GroupID)
	b = appendField(b, "outcome", string(r.Outcome))
	b = appendText(b, "code", r.Code)
	b = appendText(b, "info", r.Info)
	b = appendGeneration(b, r.Generation, "replaces", r.Replaces)
	b = appendInt(b, "attempts", int64(r.Attempts))
	b = appendInt(b, "calls", int64(r.Calls))
	b = appendField(b, "started", r.Started.UTC().Format(time.RFC3339Nano))
	b = appendField(b, "finished", r.Finished.UTC().Format(time.RFC3339Nano))
	b = appendField(b, "worker", r.Worker)
	b = appendText(b, "rename", r.Rename)
	b = appendFlag(b, "delete", r.Delete)
	if len(r.Keep) > 0 {
		b = appendConversations(b, "keep", r.Keep)
	}
	b = append(b, `,"conversations":[`...)
	for i := range r.Conversations {
		c := &r.Conversations[i]
		b = appendSeparator(b, i)
		b = appendConversation(b, &c.Conversation)
		b = appendText(b, "code", c.Code)
		b = appendText(b, "info", c.Info)
		b = append(appendFlag(b, "kept", c.Kept), '}')
	}
	return append(b, "\n]}"...)
}

func appendConversations(b []byte, key string, list []Conversation) []byte {
	b = append(append(append(b, `,"`...), key...), `":[`...)
	for i := range list {
		b = appendSeparator(b, i)
		b = append(appendConversation(b, &list[i]), '}')
	}
	return append(b, "\n]"...)
}

func appendSeparator(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return append(b, '\n')
}

// appendConversation leaves the object open.
func appendConversation(b []byte, c *Conversation) []byte {
	b = append(b, `{"type":`...)
	b = strconv.AppendInt(b, int64(c.Type), 10)
	b = appendField(b, "id", c.ID)
	b = appendText(b, "op", string(c.Op))
	if c.File != 0 {
		b = appendInt(b, "file", int64(c.File))
	}
	if c.Line != 0 {
		b = appendInt(b, "line", c.Line)
	}
	return appendFlag(b, "again", c.Again)
}

// appendText leaves out what is empty.
func appendText(b []byte, key, s string) []byte {
	if s == "" {
		return b
	}
	return appendField(b, key, s)
}

// appendFlag leaves out what is false.
func appendFlag(b []byte, key string, set bool) []byte {
	if !set {
		return b
	}
	return append(append(append(b, `,"`...), key...), `":true`...)
}

// appendGeneration leaves out what is zero, as both are for the jobs of most imports.
func appendGeneration(b []byte, generation int, key string, seq uint64) []byte {
	if generation != 0 {
		b = appendInt(b, "generation", int64(generation))
	}
	if seq != 0 {
		b = append(append(append(b, `,"`...), key...), `":`...)
		b = strconv.AppendUint(b, seq, 10)
	}
	return b
}

func appendInt(b []byte, key string, n int64) []byte {
	b = append(append(append(b, `,"`...), key...), `":`...)
	return strconv.AppendInt(b, n, 10)
}

func appendField(b []byte, key, s string) []byte {
	b = append(append(append(b, `,"`...), key...), `":`...)
	return appendString(b, s)
}

func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // the error says that s is no UTF-8
	return b
}

// decode reads the wire form of a job or of a result, whose fields are in v beside its version.
func decode(b []byte, v any, version *int) error {
	err := json.Unmarshal(b, v)
	if err != nil && *version <= Version {
		// A newer form may not fit today's fields at all, whatever its version stands behind.
		var newer struct {
			Version int `json:"v"`
		}
		if json.Unmarshal(b, &newer) == nil {
			*version = max(*version, newer.Version)
		}
	}
	switch {
	case *version > Version:
		return fmt.Errorf("version %d: %w", *version, ErrVersion)
	case err != nil:
		return err
	case *version < 1:
		return errors.New("no version")
	}
	return nil
}

// check checks what a job and a result have in common.
func check(importID, jobID string, generation int) error {
	if !ValidImportID(importID) || jobID == "" {
		return errors.New("import or job id missing")
	}
	if generation < 0 {
		return fmt.Errorf("generation %d", generation)
	}
	return nil
}

// check checks the i-th conversation of a job or a result.
func (c *Conversation) check(i int) error {
	if c.Type != OneToOne && c.Type != GroupChat {
		return fmt.Errorf("conversation %d: type %d", i, c.Type)
	}
	if c.File < 0 {
		return fmt.Errorf("conversation %d: file %d", i, c.File)
	}
	if c.Op != Add && c.Op != Remove && c.Op != Keep {
		return fmt.Errorf("conversation %d: op %q", i, c.Op)
	}
	return nil
}

// Decode reads the wire form of a job. The error wraps [ErrVersion] when it was written by a newer binary.
func Decode(b []byte) (Job, error) {
	var w struct {
		Version int `json:"v"`
		Job
	}
	err := decode(b, &w, &w.Version)
	if err == nil {
		err = check(w.Import, w.ID, w.Generation)
	}
	for i := 0; err == nil && i < len(w.Conversations); i++ {
		err = w.Conversations[i].check(i)
		if err == nil && w.Delete && w.Conversations[i].Op != Remove {
			err = fmt.Errorf("conversation %d of a group to be deleted: op %q", i, w.Conversations[i].Op)
		}
	}
	if err == nil && len(w.Conversations) == 0 {
		err = errors.New("no conversations")
	}
	if err != nil {
		return Job{}, fmt.Errorf("decode job: %w", err)
	}
	return w.Job, nil
}

// DecodeResult reads the wire form of a result. The error wraps [ErrVersion] when it was written by a newer binary.
func DecodeResult(b []byte) (Result, error) {
	var w struct {
		Version int `json:"v"`
		Result
	}
	err := decode(b, &w, &w.Version)
	if err == nil {
		err = check(w.Import, w.Job, w.Generation)
	}
	for i := 0; err == nil && i < len(w.Conversations); i++ {
		err = w.Conversations[i].check(i)
		if err == nil && w.Conversations[i].Op == Keep {
			err = fmt.Errorf("conversation %d: op %q", i, Keep)
		}
	}
	for i := 0; err == nil && i < len(w.Keep); i++ {
		err = w.Keep[i].check(i)
	}
	if err == nil && !slices.Contains(Outcomes, w.Outcome) {
		err = fmt.Errorf("outcome %q", w.Outcome)
	}
	if err != nil {
		return Result{}, fmt.Errorf("decode result: %w", err)
	}
	return w.Result, nil
}
