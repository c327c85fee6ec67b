package importer

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/job"
)

func usersOf(t testing.TB, p *Plan) []PlannedUser {
	t.Helper()
	return collect(t, p.Users())
}

func idsOf(users []PlannedUser) []string {
	ids := make([]string, len(users))
	for i, u := range users {
		ids[i] = u.ID
	}
	return ids
}

// Each user comes once, with all of the jobs, in an order that the users alone decide: not memory, rows or their order.
func TestUsers(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var rows []string
	for range 20_000 {
		rows = append(rows, fmt.Sprintf("user%d,g%d,1,c%d,\n", rng.IntN(700), rng.IntN(20), rng.IntN(9)))
	}
	var want []string
	for _, cfg := range []Config{{}, {memory: 1 << 14, resident: -1, workers: 1}} {
		rng.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		p := readString(t, csvHeader+strings.Join(rows, ""), cfg)
		byUser := map[string][]job.Job{}
		for _, j := range jobsOf(t, p) {
			byUser[j.FromAccount] = append(byUser[j.FromAccount], j)
		}
		users := usersOf(t, p)
		if got := idsOf(users); want == nil {
			want = got
		} else if !slices.Equal(got, want) {
			t.Errorf("%+v: got another order", cfg)
		}
		if len(users) != 700 || p.Summary.Users != 700 {
			t.Errorf("%+v: got %d users, the summary says %d; want 700", cfg, len(users), p.Summary.Users)
		}
		for _, u := range users {
			if !slices.EqualFunc(u.Jobs, byUser[u.ID], func(a, b job.Job) bool { return a.ID == b.ID && len(a.Conversations) == len(b.Conversations) }) {
				t.Fatalf("%s: got %d jobs, want %d", u.ID, len(u.Jobs), len(byUser[u.ID]))
			}
		}

		// The users alone are the same ones, whether they come as rows, as a list, or from elsewhere.
		list := slices.Clone(want)
		rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		cfg.UsersOnly = true
		for name, p := range map[string]*Plan{
			"rows":      readString(t, csvHeader+strings.Join(rows, ""), cfg),
			"a list":    readString(t, strings.Join(append(list, list[:9]...), "\r\n"), cfg),
			"elsewhere": readUsers(t, append(list, list[:9]...), cfg),
		} {
			if got := idsOf(usersOf(t, p)); !slices.Equal(got, want) {
				t.Errorf("%+v, %s: got %d users, want the same %d in the same order", cfg, name, len(got), len(want))
			}
		}
	}
}

func readUsers(t testing.TB, ids []string, cfg Config) *Plan {
	t.Helper()
	p, err := ReadUsers(t.Context(), noErrors(ids), cfg)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, p)
	return p
}

func noErrors[T any](all []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// With a base, a user comes with what it knows, also one without rows.
func TestUsersOnBase(t *testing.T) {
	var base []Group
	var input strings.Builder
	input.WriteString(csvHeader)
	want := map[string]string{}
	for i := range 300 {
		id := fmt.Sprint("user", i)
		if i%3 != 0 {
			base = append(base,
				Group{FromAccount: id, GroupName: "old", Conversations: []GroupConversation{{job.OneToOne, "x", Applied}}},
				Group{FromAccount: id, GroupName: "g", Conversations: []GroupConversation{{job.OneToOne, "y", Refused}}})
			want[id] += " knows g knows old"
		}
		if i%3 != 1 {
			fmt.Fprintf(&input, "%s,g,1,c,\n%s,old,1,x,\n", id, id)
			want[id] = "job g job old" + want[id]
		}
	}
	rows, err := ReadRows(t.Context(), []string{"-"}, Config{Stdin: strings.NewReader(input.String()), memory: 1 << 14})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	p, err := rows.Plan(t.Context(), &Base{Name: "s", All: true, Groups: noErrors(base)})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, u := range usersOf(t, p) {
		var parts []string
		for _, j := range u.Jobs {
			parts = append(parts, "job "+j.GroupName)
		}
		slices.Sort(parts)
		text := strings.Join(parts, " ")
		for _, g := range u.Known {
			text += " knows " + g.GroupName
		}
		if _, again := got[u.ID]; again {
			t.Errorf("%s comes twice", u.ID)
		}
		got[u.ID] = text
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A list of users is told from a CSV by its first line, which has one field.
func TestUserLists(t *testing.T) {
	tests := []struct {
		name, input string
		cfg         Config
		want        []string
		rejected    int64
	}{
		{"ids", "bob\nann\n\nbob\r\nzoë\n ann", Config{}, []string{"ann", "bob"}, 2},
		{"with its name", "From_Account\nann", Config{}, []string{"ann"}, 0},
		{"with a mark", "\ufeffann\n", Config{}, []string{"ann"}, 0},
		{"forced", "a;b\nc,d\n", Config{Format: FormatUsers}, []string{"a;b", "c,d"}, 0},
		{"rows of which only the users are right", csvHeader + "ann,,9,,\nbob,g,1,b,\n,g,1,b,\n", Config{}, []string{"ann", "bob"}, 1},
		{"JSONL", `{"from_account":"ann","group_name":"g","to_account":"x"}` + "\n", Config{}, []string{"ann"}, 0},
		{"an owner", "group_name,to_account\ng,x\n", Config{Owner: "ann"}, []string{"ann"}, 0},
		{"too long", strings.Repeat("x", 33) + "\nann\n" + strings.Repeat("y", maxLine+1) + "\nbob", Config{}, []string{"ann", "bob"}, 2},
	}
	for _, test := range tests {
		test.cfg.UsersOnly = true
		p := readString(t, test.input, test.cfg)
		got := idsOf(usersOf(t, p))
		slices.Sort(got)
		if !slices.Equal(got, test.want) || p.Summary.Rejected != test.rejected {
			t.Errorf("%s: got %q, %d rejected; want %q, %d", test.name, got, p.Summary.Rejected, test.want, test.rejected)
		}
	}
	for _, input := range []string{"from_account;group_name;to_account\n", "owner,label\n"} {
		_, err := Read(t.Context(), []string{"-"}, Config{UsersOnly: true, Stdin: strings.NewReader(input)})
		if !errors.As(err, new(*Error)) {
			t.Errorf("%q: got %v, want that this is no header", input, err)
		}
	}
	if _, err := Read(t.Context(), []string{"-"}, Config{Format: FormatUsers, Stdin: strings.NewReader("ann")}); !errors.As(err, new(*ConfigError)) {
		t.Errorf("an import of users: got %v, want a *ConfigError", err)
	}
}
