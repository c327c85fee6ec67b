package chatsim

import (
	"cmp"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"groupferry/internal/chat"
)

const (
	maxBody = 1 << 20 // of a request, in bytes; 100 conversations take about 10 kB
	maxHang = 60 * time.Second
)

// ServeHTTP serves the calls of the API, and the simulator's own endpoints.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	s.handlers.Add(1)
	s.mu.Unlock()
	defer s.handlers.Done()

	name, isCall := strings.CutPrefix(r.URL.Path, chat.PathPrefix)
	if command := chat.Command(name); isCall && slices.Contains(chat.Commands(), command) {
		s.serveCall(w, r, command)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /ledger":
		writeJSON(w, s.Ledger())
	case "GET /state":
		writeJSON(w, s.State())
	case "POST /control":
		s.serveControl(w, r)
	case "POST /reset":
		if fromHere(w, r) {
			s.Reset()
			w.WriteHeader(http.StatusNoContent)
		}
	default:
		s.mu.Lock()
		s.book.NotFound++
		s.mu.Unlock()
		http.NotFound(w, r)
	}
}

// fromHere rejects a request from another machine: whoever can change the faults can make a simulator useless. It
// reports whether the request is local.
func fromHere(w http.ResponseWriter, r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsLoopback() {
		return true
	}
	http.Error(w, "only from the simulator's own machine", http.StatusForbidden)
	return false
}

func (s *Sim) serveControl(w http.ResponseWriter, r *http.Request) {
	if !fromHere(w, r) {
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		var bad error
		err = s.Configure(func(c *Config) { bad = json.Unmarshal(body, c) })
		err = cmp.Or(bad, err)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil { // strings and integers always marshal
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b) // an error means that the caller is gone
}

// A verdict is how a call ends.
type verdict struct {
	response any    // body of a 200
	status   int    // HTTP status; 0 for 200
	fault    string // kind of the fault that decides how the response is sent
}

func (s *Sim) serveCall(w http.ResponseWriter, r *http.Request, command chat.Command) {
	// The lock makes the stamps of the ledger ascend.
	s.mu.Lock()
	throttleCode := s.book.arrive(command, time.Now(), s.set.Rate, s.set.AppRate)
	delay := s.set.Latency
	if s.set.Jitter > 0 {
		delay += time.Duration((2*s.rng.Float64() - 1) * float64(s.set.Jitter))
	}
	s.mu.Unlock()

	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil { // the caller left while sending
		s.mu.Lock()
		s.book.end(command, failed)
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	var asked request
	badBody := json.Unmarshal(body, &asked) != nil || len(body) > maxBody

	s.mu.Lock()
	user := asked.FromAccount
	s.current[user]++
	if !badBody {
		s.book.MostAtOnce = max(s.book.MostAtOnce, s.current[user])
	}
	s.mu.Unlock()

	s.wait(delay)

	s.mu.Lock()
	v := s.decide(command, r, throttleCode, &asked, badBody)
	// The user is free before the response is sent: the next call may arrive before this function returns.
	if s.current[user]--; s.current[user] == 0 {
		delete(s.current, user)
	}
	s.mu.Unlock()

	s.send(w, r, v)
}

// wait delays a call. It does not stop when the caller leaves: the API, too, finishes calls that have arrived.
func (s *Sim) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.closing:
	}
}

// decide decides a call, counts the outcome in the ledger and, unless the call is rejected, changes the groups. The
// caller holds the lock.
func (s *Sim) decide(command chat.Command, r *http.Request, throttleCode int, asked *request, badBody bool) verdict {
	reject := func(o outcome, why *rejection) verdict {
		s.book.end(command, o)
		if why.bad {
			s.book.bad(command, why.code, why.text)
		}
		return verdict{response: why.response()}
	}
	switch {
	case r.Method != http.MethodPost:
		s.book.end(command, failed)
		s.book.bad(command, http.StatusMethodNotAllowed, "the method is not POST")
		return verdict{status: http.StatusMethodNotAllowed}
	case !s.set.offered(command) && s.set.NotOfferedCode == 0:
		s.book.end(command, failed)
		return verdict{status: http.StatusNotFound}
	case !s.set.offered(command):
		return reject(failed, &rejection{code: s.set.NotOfferedCode, text: chat.Meaning(s.set.NotOfferedCode)})
	case throttleCode != 0:
		return reject(throttled, &rejection{code: throttleCode, text: chat.Meaning(throttleCode)})
	}
	if rejected := s.authorize(r.URL.Query()); rejected != nil {
		return reject(failed, rejected)
	}
	if badBody {
		return reject(failed, badRequest(chat.CodeBadJSON, "the body is no JSON of the right shape"))
	}
	if rejected := asked.check(command); rejected != nil {
		return reject(failed, rejected)
	}

	s.set.seen[command]++
	s.set.seen[""]++
	var struck *Fault // the call as a whole
	itemFaults := make([]*Fault, 0, len(s.set.Faults))
	for i := range s.set.Faults {
		f := &s.set.Faults[i]
		if f.Command != "" && f.Command != command || !f.active(s.set.seen[f.Command]) {
			continue
		}
		if _, isItem := f.itemCode(); isItem {
			itemFaults = append(itemFaults, f)
		} else if f.strikes(s.rng) && struck == nil {
			struck = f
		}
	}
	late := struck != nil && struck.Kind == Late
	if struck != nil && !struck.applied() && !late {
		if code, isCode := struck.code(); isCode {
			return reject(faulted, &rejection{code: code, text: chat.Meaning(code)})
		}
		s.book.end(command, faulted)
		status, _ := struck.status()
		return verdict{status: status, fault: struck.Kind}
	}
	if code := s.set.FailIDs[asked.FromAccount]; code != 0 {
		return reject(failed, &rejection{code: code, text: chat.Meaning(code)})
	}

	itemCode := func(it chat.Item) int {
		code := s.set.FailIDs[it.ID]
		for _, f := range itemFaults {
			if f.strikes(s.rng) && code == 0 {
				code, _ = f.itemCode()
			}
		}
		return code
	}
	if late {
		s.book.end(command, faulted)
		delay := s.set.Late
		s.handlers.Go(func() {
			s.wait(delay)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.apply(command, asked, itemCode)
		})
		return verdict{fault: Lost}
	}
	response, rejected := s.apply(command, asked, itemCode)
	switch {
	case struck != nil:
		s.book.end(command, faulted)
		if rejected != nil {
			response = rejected.response()
		}
		return verdict{response: response, fault: struck.Kind}
	case rejected != nil:
		return reject(failed, rejected)
	}
	s.book.end(command, accepted)
	return verdict{response: response}
}

// send writes the response, or ends the connection as the fault says.
func (s *Sim) send(w http.ResponseWriter, r *http.Request, v verdict) {
	switch v.fault {
	case Hang:
		select {
		case <-r.Context().Done():
		case <-time.After(maxHang):
		case <-s.closing:
		}
		panic(http.ErrAbortHandler)
	case Lost:
		panic(http.ErrAbortHandler)
	case Reset:
		reset(w)
		return
	case Garbage:
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html><body>a proxy has a page for this</body></html>\n")
		return
	}
	if v.status != 0 {
		http.Error(w, http.StatusText(v.status), v.status)
		return
	}
	if v.fault == Cut {
		cut(w, v.response)
	}
	writeJSON(w, v.response)
}

// reset closes the connection with a TCP reset.
func reset(w http.ResponseWriter) {
	hijacker, can := w.(http.Hijacker)
	if !can {
		panic(http.ErrAbortHandler)
	}
	conn, _, err := hijacker.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, isTCP := conn.(*net.TCPConn); isTCP {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// cut sends half of a response and closes the connection.
func cut(w http.ResponseWriter, response any) {
	b, err := json.Marshal(response)
	if err != nil { // strings and integers always marshal
		panic(err)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b[:len(b)/2])
	http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// seenSig is a UserSig that was verified; after that only its expiry has to be checked.
type seenSig struct{ identifier, sig string }

// maxSigs is how many verified signatures are remembered. A client uses one for hours.
const maxSigs = 256

// authorize checks the query of a call: the app, the caller, and the signature.
func (s *Sim) authorize(query url.Values) *rejection {
	appID := query.Get("sdkappid")
	identifier, sig := query.Get("identifier"), query.Get("usersig")
	_, badRandom := strconv.ParseUint(query.Get("random"), 10, 32)
	switch {
	case appID == "":
		return badRequest(chat.CodeSDKAppIDMissing, "no sdkappid in the query")
	case appID != strconv.FormatUint(s.set.SDKAppID, 10):
		return badRequest(chat.CodeBadSDKAppID, "another sdkappid in the query")
	case identifier == "":
		return badRequest(chat.CodeBadURL, "no identifier in the query")
	case badRandom != nil:
		return badRequest(chat.CodeBadURL, "random in the query is no number of 32 bits")
	case query.Get("contenttype") != "json":
		return badRequest(chat.CodeBadURL, "contenttype in the query is not json")
	}
	if code := s.verify(identifier, sig, time.Now()); code != 0 {
		return badRequest(code, "%s", chat.Meaning(code))
	}
	switch {
	case s.set.Disabled:
		return &rejection{code: chat.CodeAppDisabled, text: chat.Meaning(chat.CodeAppDisabled)}
	case !slices.Contains(s.set.Admins, identifier):
		return badRequest(chat.CodeNotAdmin, "the caller is no app admin")
	case s.set.Edition == Standard:
		return &rejection{code: chat.CodeEditionLacks, text: chat.Meaning(chat.CodeEditionLacks)}
	}
	return nil
}

func (s *Sim) verify(identifier, sig string, now time.Time) int {
	seen := seenSig{identifier, sig}
	if expiry, good := s.sigs[seen]; good {
		if now.Unix() > expiry.Unix() {
			return chat.CodeSigExpired
		}
		return 0
	}
	code := chat.VerifyUserSig(sig, s.set.SecretKey, s.set.SDKAppID, identifier, now)
	if code != 0 {
		return code
	}
	expiry, err := chat.UserSigExpiry(sig)
	if err != nil { // VerifyUserSig has just read it
		panic(err)
	}
	if len(s.sigs) >= maxSigs {
		clear(s.sigs)
	}
	s.sigs[seen] = expiry
	return 0
}

// check returns what is wrong with a request, apart from what depends on the groups.
func (r *request) check(command chat.Command) *rejection {
	if !validID(r.FromAccount, chat.MaxUserIDBytes) {
		return badRequest(chat.CodeBadParameter, "From_Account is not 1 to %d bytes of printable ASCII", chat.MaxUserIDBytes)
	}
	switch command {
	case chat.CreateContactGroup:
		if len(r.GroupContactItem) != 1 {
			return badRequest(chat.CodeBadParameter, "%d groups in GroupContactItem, not 1", len(r.GroupContactItem))
		}
		g := &r.GroupContactItem[0]
		if rejected := checkName(g.GroupName); rejected != nil {
			return rejected
		}
		if rejected := checkCount(len(g.ContactItem)); rejected != nil {
			return rejected
		}
		for i := range g.ContactItem {
			if rejected := g.ContactItem[i].check(); rejected != nil {
				return rejected
			}
		}
	case chat.UpdateContactGroup:
		return r.checkUpdate()
	case chat.DelContactGroup:
		if len(r.GroupName) != 1 {
			return badRequest(chat.CodeBadParameter, "%d names in GroupName, not 1", len(r.GroupName))
		}
		return checkName(r.GroupName[0])
	case chat.GetContactGroup:
		if r.StartIndex < 0 {
			return badRequest(chat.CodeBadParameter, "StartIndex is negative")
		}
	}
	return nil
}

func (r *request) checkUpdate() *rejection {
	u := &r.UpdateGroup
	if r.UpdateType != updateGroup {
		return badRequest(chat.CodeBadParameter, "UpdateType is %d, not %d", r.UpdateType, updateGroup)
	}
	if rejected := checkName(u.OldGroupName); rejected != nil {
		return rejected
	}
	switch u.UpdateGroupType {
	case renameGroup:
		return checkName(u.NewGroupName)
	case updateMembers:
	default:
		return badRequest(chat.CodeBadParameter, "UpdateGroupType is %d, neither 1 nor 2", u.UpdateGroupType)
	}
	if rejected := checkCount(len(u.ContactUpdateItem)); rejected != nil {
		return rejected
	}
	for i := range u.ContactUpdateItem {
		it := &u.ContactUpdateItem[i]
		if it.ContactOptType != optAdd && it.ContactOptType != optRemove {
			return badRequest(chat.CodeBadParameter, "ContactOptType is %d, neither 1 nor 2", it.ContactOptType)
		}
		if rejected := it.ContactItem.check(); rejected != nil {
			return rejected
		}
	}
	return nil
}

func (w *wireItem) check() *rejection {
	switch {
	case w.Type != chat.OneToOne && w.Type != chat.GroupChat:
		return badRequest(chat.CodeBadParameter, "Type is %d, neither 1 nor 2", w.Type)
	case w.Type == chat.OneToOne && !validID(w.ToAccount, chat.MaxUserIDBytes):
		return badRequest(chat.CodeBadParameter, "To_Account is not 1 to %d bytes of printable ASCII", chat.MaxUserIDBytes)
	case w.Type == chat.GroupChat && !validID(w.ToGroupID, chat.MaxGroupIDBytes):
		return badRequest(chat.CodeBadParameter, "ToGroupId is not 1 to %d bytes of printable ASCII", chat.MaxGroupIDBytes)
	}
	return nil
}

func checkCount(n int) *rejection {
	if n < 1 || n > chat.MaxItemsPerCall {
		return badRequest(chat.CodeItemCount, "%d conversations, not 1 to %d", n, chat.MaxItemsPerCall)
	}
	return nil
}

func checkName(name string) *rejection {
	if name == "" || len(name) > chat.MaxGroupNameBytes {
		return badRequest(chat.CodeGroupNameTooLong, "a group name of %d bytes, not 1 to %d", len(name), chat.MaxGroupNameBytes)
	}
	return nil
}

func validID(id string, most int) bool {
	return id != "" && len(id) <= most && !strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' })
}
