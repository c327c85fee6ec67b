package chat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestDecode(t *testing.T) {
	want := createResponse{
		baseResponse{"OK", integer{0, true}, ""},
		[]groupResult{{responseGroup{"g", integer{12, true}}, []responseResult{{
			ContactItem: responseItem{Type: integer{1, true}, ToAccount: "a\"b"},
			ResultCode:  integer{-3, true},
			ResultInfo:  "why",
		}}}},
	}
	const plain = `{"GroupResultItem":[{"GroupItem":{"GroupName":"g","GroupId":12},"ResultItem":[{"ContactItem":` +
		`{"Type":1,"To_Account":"a\"b"},"ResultCode":-3,"ResultInfo":"why"}]}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}`
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(plain), "\t", "  "); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"plain":          plain,
		"indented":       " " + indented.String() + "\r\n",
		"numbers quoted": strings.NewReplacer("12", `"12"`, ":1,", `:"1",`, "-3", `"-3"`).Replace(plain),
		"another case":   strings.NewReplacer("GroupId", "GroupID", "To_A", "to_a", "ErrorCode", "errorcode").Replace(plain),
		"escaped names":  strings.NewReplacer("GroupId", `\u0047roupId`).Replace(plain),
		"more in it":     strings.NewReplacer("{", `{"New":[{"Type":9}],"None":null,`).Replace(plain),
		"null":           strings.NewReplacer(`"ErrorInfo":""`, `"ErrorInfo":null`).Replace(plain),
		"said twice":     `{"ErrorCode":7,"GroupResultItem":[{},{}],` + plain[1:],
	} {
		var got createResponse
		if err := decode([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}

	for text, want := range map[string]string{
		"":                                   "the response is undecodable: it is empty",
		" \n":                                "the response is undecodable: it is empty",
		"<html>":                             "the response is undecodable: no JSON from byte 0 on",
		`{"ErrorCode":0]`:                    "the response is undecodable: no JSON from byte 14 on",
		`{"ErrorCode":0} {}`:                 "the response is undecodable: no JSON from byte 16 on",
		`{"ErrorCode":0}}`:                   "the response is undecodable: no JSON from byte 15 on",
		"[]":                                 "the response is undecodable: JSON of another shape",
		`{"ErrorInfo":1}`:                    "the response is undecodable: JSON of another shape",
		`{"GroupResultItem":{}}`:             "the response is undecodable: JSON of another shape",
		`{"GroupResultItem":[7]}`:            "the response is undecodable: JSON of another shape",
		`{"GroupResultItem":[{"GroupItem":[`: "the response is undecodable: JSON of another shape",
		`{"ErrorCode":0`:                     "the response was cut off",
		`{"ErrorCode":`:                      "the response was cut off",
		`{"ErrorCo`:                          "the response was cut off",
		`{"GroupResultItem":[{"ResultItem":`: "the response was cut off",
	} {
		err := decode([]byte(text), new(createResponse))
		if err == nil || err.Error() != want || !errors.Is(err, errUndecodable) && !errors.Is(err, errCutOff) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

// BenchmarkDecode reads the response to a call of 20 conversations.
func BenchmarkDecode(b *testing.B) {
	var items []string
	for i := range 20 {
		items = append(items, fmt.Sprintf(
			`{"ContactItem":{"Type":1,"To_Account":"user%06d"},"ResultCode":0,"ResultInfo":""}`, i))
	}
	text := []byte(`{"GroupResultItem":[{"GroupItem":{"GroupName":"family","GroupId":12},"ResultItem":[` +
		strings.Join(items, ",") + `]}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}`)
	b.ReportAllocs()
	for b.Loop() {
		var a createResponse
		if err := decode(text, &a); err != nil || len(a.GroupResultItem[0].ResultItem) != len(items) {
			b.Fatal(err)
		}
	}
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte(okResponse))
	f.Add([]byte(`{"GroupResultItem":[{"GroupItem":{"GroupId":"2"},"ResultItem":[{"ContactItem":{"Type":1,"To_Account":"a"},` +
		`"ResultCode":0},{"ContactItem":{"Type":2,"ToGroupId":"b"},"ResultCode":51007}]}],"ActionStatus":"OK","ErrorCode":0}`))
	f.Add([]byte(`{"UpdateGroupResult":[{"ContactResultItem":null}],"ErrorCode":"1"}`))
	items := []Item{{GroupChat, "b"}, {OneToOne, "a"}, {OneToOne, "a"}}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, response := range []any{new(createResponse), new(updateResponse), new(getResponse)} {
			err := decode(text, response)
			if err != nil && !errors.Is(err, errUndecodable) && !errors.Is(err, errCutOff) {
				t.Errorf("got %v, want undecodable or cut off", err)
			}
			a, isCreate := response.(*createResponse)
			if err != nil || !isCreate {
				continue
			}
			compareWithStandard(t, text, a)
			m := matcher{clean: func(s string) string { return cleanText(s) }}
			told := 0
			for _, g := range a.GroupResultItem {
				m.add(g.ResultItem)
				told += len(g.ResultItem)
			}
			out := m.match(nil, items, optNone)
			reported := 0
			for i, r := range out {
				if r.Item != items[i] {
					t.Errorf("result %d: got %v, want %v", i, r.Item, items[i])
				}
				if r.Reported {
					reported++
				}
			}
			if len(out) != len(items) || reported > told {
				t.Errorf("got %d results, %d reported by %d", len(out), reported, told)
			}
		}
	})
}

// compareWithStandard checks that encoding/json reads the same. It leaves out what that makes of a member that is there
// twice, of the two letters beside those of ASCII that it takes for an s and a k, and of names with a _ or - more or less.
func compareWithStandard(t *testing.T, text []byte, got *createResponse) {
	lower := bytes.ToLower(text)
	if !jsontext.Value(lower).IsValid() || bytes.ContainsAny(text, "\u017f\u212a") ||
		bytes.ContainsAny(bytes.ReplaceAll(lower, []byte("to_account"), nil), "_-") || bytes.Contains(lower, []byte("toaccount")) ||
		bytes.Contains(text, []byte(`\u`)) { // names can be written so, too
		return
	}
	type number struct{ json.RawMessage }
	var want struct {
		ActionStatus    string
		ErrorCode       number
		ErrorInfo       string
		GroupResultItem []struct {
			GroupItem struct {
				GroupName string
				GroupID   number `json:"GroupId"`
			}
			ResultItem []struct {
				ContactOptType number
				ContactItem    struct {
					Type      number
					ToAccount string `json:"To_Account"`
					ToGroupID string `json:"ToGroupId"`
				}
				ResultCode number
				ResultInfo string
			}
		}
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Errorf("got %+v, encoding/json says %v", got, err)
		return
	}
	read := func(n number) (i integer) {
		s := string(n.RawMessage)
		if len(s) > 0 && s[0] == '"' {
			s = s[1 : len(s)-1]
		}
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			i = integer{n, true}
		}
		return i
	}
	wanted := createResponse{baseResponse: baseResponse{want.ActionStatus, read(want.ErrorCode), want.ErrorInfo}}
	for _, g := range want.GroupResultItem {
		group := groupResult{GroupItem: responseGroup{g.GroupItem.GroupName, read(g.GroupItem.GroupID)}}
		for _, r := range g.ResultItem {
			group.ResultItem = append(group.ResultItem, responseResult{
				read(r.ContactOptType),
				responseItem{read(r.ContactItem.Type), r.ContactItem.ToAccount, r.ContactItem.ToGroupID},
				read(r.ResultCode), r.ResultInfo,
			})
		}
		wanted.GroupResultItem = append(wanted.GroupResultItem, group)
	}
	if got, want := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", wanted); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
