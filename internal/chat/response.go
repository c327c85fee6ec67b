package chat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// A baseResponse is what all responses have.
type baseResponse struct {
	ActionStatus string
	ErrorCode    integer
	ErrorInfo    string
}

func (b *baseResponse) base() *baseResponse { return b }

type responseItem struct {
	Type      integer
	ToAccount string `json:"To_Account"`
	ToGroupID string `json:"ToGroupId"`
}

// item returns the conversation; where the type is missing, the id that is there tells it.
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

type responseGroup struct {
	GroupName string
	GroupID   integer `json:"GroupId"`
}

type groupResult struct {
	GroupItem  responseGroup
	ResultItem []responseResult
}

type createResponse struct {
	baseResponse
	GroupResultItem []groupResult
}

// updateResult has its list under the name that the document gives, or under that of create's response.
type updateResult struct {
	GroupID           integer `json:"GroupId"`
	ContactResultItem []responseResult
	ResultItem        []responseResult
}

type updateResponse struct {
	baseResponse
	UpdateGroupResult updateResults
	GroupResultItem   []groupResult
}

// updateResults is a list in some documents, and one object without a list in others. Anything else is none.
type updateResults []updateResult

func (u *updateResults) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch dec.PeekKind() {
	case jsontext.KindBeginObject:
		*u = make(updateResults, 1)
		return json.UnmarshalDecode(dec, &(*u)[0])
	case jsontext.KindBeginArray:
		return json.UnmarshalDecode(dec, (*[]updateResult)(u))
	}
	*u = nil
	return dec.SkipValue()
}

type getResponse struct {
	baseResponse
	ContactItem    []getItem
	GroupItem      []responseGroup
	CompleteFlag   integer
	NextStartIndex integer
}

type getItem struct {
	responseItem
	ContactGroupID []integer `json:"ContactGroupId"`
}

// An integer is read from a JSON number or from a string that holds one. Anything else leaves ok false, and does not
// make the whole response unreadable: most of them are only shown to people.
type integer struct {
	n  int64
	ok bool
}

func (i *integer) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	v, err := dec.ReadValue()
	if err != nil {
		return err
	}
	if v.Kind() == jsontext.KindString {
		v = v[1 : len(v)-1]
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	*i = integer{n: n, ok: err == nil}
	if err != nil {
		i.n = 0
	}
	return nil
}

// errShape says that a response is sound JSON.
var errShape = errors.New("JSON of another shape")

// decode reads a response. The names in it count in any case, for documents do not agree on it; what nobody knows is
// skipped, and null is as good as not there. The error quotes nothing of the response, for it may hold anything.
func decode(text []byte, response any) error {
	err := json.Unmarshal(text, response, json.MatchCaseInsensitiveNames(true),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	var syntax *jsontext.SyntacticError
	switch {
	case err == nil:
		return nil
	case len(bytes.TrimSpace(text)) == 0:
		return fmt.Errorf("%w: it is empty", errUndecodable)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errCutOff
	case errors.As(err, &syntax):
		return fmt.Errorf("%w: no JSON from byte %d on", errUndecodable, syntax.ByteOffset)
	}
	return fmt.Errorf("%w: %w", errUndecodable, errShape)
}
