package chat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// A response is read member by member, in whatever order they come. Their names count in any case, for documents do not
// agree on it; what nobody knows is skipped, and null is as good as not there.
//
// It goes by tokens for the time that saves: encoding/json takes three times as long, a seventh of all that a job costs.

// A wireObject is an object of a response.
type wireObject interface {
	member(r *responseReader, name []byte) // reads the value of a member, by its name in lower case
}

// A baseResponse is what all responses have.
type baseResponse struct {
	ActionStatus string
	ErrorCode    integer
	ErrorInfo    string
}

func (b *baseResponse) base() *baseResponse { return b }

func (b *baseResponse) member(r *responseReader, name []byte) {
	switch string(name) {
	case "actionstatus":
		r.text(&b.ActionStatus)
	case "errorcode":
		r.integer(&b.ErrorCode)
	case "errorinfo":
		r.text(&b.ErrorInfo)
	default:
		r.skip()
	}
}

type responseItem struct {
	Type      integer
	ToAccount string
	ToGroupID string
}

func (a *responseItem) member(r *responseReader, name []byte) {
	switch string(name) {
	case "type":
		r.integer(&a.Type)
	case "to_account":
		r.text(&a.ToAccount)
	case "togroupid":
		r.text(&a.ToGroupID)
	default:
		r.skip()
	}
}

// item gives the conversation; where the type is missing, the id that is there tells it.
func (a *responseItem) item() Item {
	if a.Type.n == GroupChat || a.Type.n == 0 && a.ToAccount == "" {
		return Item{Type: GroupChat, ID: a.ToGroupID}
	}
	return Item{Type: OneToOne, ID: a.ToAccount}
}

type responseResult struct {
	ContactOptType integer
	ContactItem    responseItem
	ResultCode     integer
	ResultInfo     string
}

func (a *responseResult) member(r *responseReader, name []byte) {
	switch string(name) {
	case "contactopttype":
		r.integer(&a.ContactOptType)
	case "contactitem":
		r.object(&a.ContactItem)
	case "resultcode":
		r.integer(&a.ResultCode)
	case "resultinfo":
		r.text(&a.ResultInfo)
	default:
		r.skip()
	}
}

type responseGroup struct {
	GroupName string
	GroupID   integer
}

func (a *responseGroup) member(r *responseReader, name []byte) {
	switch string(name) {
	case "groupname":
		r.text(&a.GroupName)
	case "groupid":
		r.integer(&a.GroupID)
	default:
		r.skip()
	}
}

type groupResult struct {
	GroupItem  responseGroup
	ResultItem []responseResult
}

func (g *groupResult) member(r *responseReader, name []byte) {
	switch string(name) {
	case "groupitem":
		r.object(&g.GroupItem)
	case "resultitem":
		readList(r, &g.ResultItem)
	default:
		r.skip()
	}
}

type createResponse struct {
	baseResponse
	GroupResultItem []groupResult
}

func (c *createResponse) member(r *responseReader, name []byte) {
	switch string(name) {
	case "groupresultitem":
		readList(r, &c.GroupResultItem)
	default:
		c.baseResponse.member(r, name)
	}
}

// updateResult has its list under the name that the document gives, or under that of create's response.
type updateResult struct {
	GroupID           integer
	ContactResultItem []responseResult
	ResultItem        []responseResult
}

func (u *updateResult) member(r *responseReader, name []byte) {
	switch string(name) {
	case "groupid":
		r.integer(&u.GroupID)
	case "contactresultitem":
		readList(r, &u.ContactResultItem)
	case "resultitem":
		readList(r, &u.ResultItem)
	default:
		r.skip()
	}
}

type updateResponse struct {
	baseResponse
	UpdateGroupResult []updateResult
	GroupResultItem   []groupResult
}

func (u *updateResponse) member(r *responseReader, name []byte) {
	switch string(name) {
	case "updategroupresult": // some documents show it alone and others in a list
		switch r.dec.PeekKind() {
		case jsontext.KindBeginObject:
			u.UpdateGroupResult = make([]updateResult, 1)
			r.object(&u.UpdateGroupResult[0])
		case jsontext.KindBeginArray:
			readList(r, &u.UpdateGroupResult)
		default:
			r.skip()
		}
	case "groupresultitem":
		readList(r, &u.GroupResultItem)
	default:
		u.baseResponse.member(r, name)
	}
}

type getResponse struct {
	baseResponse
	ContactItem    []getItem
	GroupItem      []responseGroup
	CompleteFlag   integer
	NextStartIndex integer
}

func (g *getResponse) member(r *responseReader, name []byte) {
	switch string(name) {
	case "contactitem":
		readList(r, &g.ContactItem)
	case "groupitem":
		readList(r, &g.GroupItem)
	case "completeflag":
		r.integer(&g.CompleteFlag)
	case "nextstartindex":
		r.integer(&g.NextStartIndex)
	default:
		g.baseResponse.member(r, name)
	}
}

type getItem struct {
	responseItem
	ContactGroupID []integer
}

func (g *getItem) member(r *responseReader, name []byte) {
	switch string(name) {
	case "contactgroupid":
		g.ContactGroupID = nil
		r.list(func() {
			var id integer
			r.integer(&id)
			g.ContactGroupID = append(g.ContactGroupID, id)
		})
	default:
		g.responseItem.member(r, name)
	}
}

// An integer is read from a JSON number or from a string that holds one. Anything else leaves ok false, and does not
// make the whole response unreadable: most of them are only told to people.
type integer struct {
	n  int64
	ok bool
}

// A responseReader reads a response. After its first error it reads nothing more.
type responseReader struct {
	dec  *jsontext.Decoder
	name []byte // of the member at hand
	err  error
}

var responseReaders = sync.Pool{New: func() any { return &responseReader{dec: jsontext.NewDecoder(new(bytes.Buffer))} }}

// errShape says that a response is sound JSON.
var errShape = errors.New("JSON of another shape")

// decode reads a response. The error quotes nothing of it, for it may hold anything.
func decode(text []byte, response wireObject) error {
	r := responseReaders.Get().(*responseReader)
	defer responseReaders.Put(r)
	r.dec.Reset(bytes.NewBuffer(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	r.err = nil
	r.object(response)
	if r.err == nil {
		switch _, err := r.dec.ReadToken(); err {
		case io.EOF:
			return nil
		case nil:
			r.err = errShape // something follows
		default:
			r.err = err
		}
	}
	var syntax *jsontext.SyntacticError
	switch {
	case r.err == io.EOF:
		return fmt.Errorf("%w: it is empty", errUndecodable)
	case errors.Is(r.err, io.ErrUnexpectedEOF):
		return errCutOff
	case errors.As(r.err, &syntax):
		return fmt.Errorf("%w: no JSON from byte %d on", errUndecodable, syntax.ByteOffset)
	}
	return fmt.Errorf("%w: %w", errUndecodable, r.err)
}

// token reads the first token of a value that should be of a kind. False says that there is no such value, but null or,
// with an error, another one.
func (r *responseReader) token(kind jsontext.Kind) (jsontext.Token, bool) {
	if r.err != nil {
		return jsontext.Token{}, false
	}
	t, err := r.dec.ReadToken()
	switch {
	case err != nil:
		r.err = err
	case t.Kind() == kind:
		return t, true
	case t.Kind() != jsontext.KindNull:
		r.err = errShape
	}
	return jsontext.Token{}, false
}

// value reads a value as it stands; it is gone after the next one.
func (r *responseReader) value() (v jsontext.Value) {
	if r.err == nil {
		v, r.err = r.dec.ReadValue()
	}
	return v
}

func (r *responseReader) skip() {
	if r.err == nil {
		r.err = r.dec.SkipValue()
	}
}

func (r *responseReader) object(o wireObject) {
	if _, ok := r.token(jsontext.KindBeginObject); !ok {
		return
	}
	for r.err == nil && r.dec.PeekKind() != jsontext.KindEndObject {
		r.name, _ = jsontext.AppendUnquote(r.name[:0], r.value()) // an error leaves a name that nobody knows
		for i, c := range r.name {
			if 'A' <= c && c <= 'Z' {
				r.name[i] = c - 'A' + 'a'
			}
		}
		o.member(r, r.name)
	}
	r.token(jsontext.KindEndObject)
}

// list calls each for every value of a list, to read it, and tells whether there is a list.
func (r *responseReader) list(each func()) bool {
	if _, ok := r.token(jsontext.KindBeginArray); !ok {
		return false
	}
	for r.err == nil && r.dec.PeekKind() != jsontext.KindEndArray {
		each()
	}
	r.token(jsontext.KindEndArray)
	return true
}

// readList reads a list of objects; nil stands for none, which is not the same as an empty one.
func readList[T any, P interface {
	*T
	wireObject
}](r *responseReader, list *[]T) {
	read := []T{}
	if !r.list(func() {
		if len(read) == 1 {
			read = slices.Grow(read, 31) // a list that has more than one has many
		}
		read = append(read, *new(T))
		r.object(P(&read[len(read)-1]))
	}) {
		read = nil
	}
	*list = read
}

func (r *responseReader) text(s *string) {
	if t, ok := r.token(jsontext.KindString); ok {
		*s = t.String()
	}
}

func (r *responseReader) integer(i *integer) {
	v := r.value()
	if v.Kind() == jsontext.KindString {
		v = v[1 : len(v)-1]
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	*i = integer{n: n, ok: err == nil}
	if err != nil {
		i.n = 0
	}
}
