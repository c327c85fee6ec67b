package queue

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// groups collects what a gather makes of the numbers that come while its first group, a 0, is held.
func groups(t *testing.T, g *gather[int], numbers ...int) [][]int {
	t.Helper()
	var got [][]int
	begun, held := make(chan struct{}), make(chan struct{})
	g.do = func(group []int) {
		if got = append(got, slices.Clone(group)); len(got) == 1 {
			close(begun)
			<-held
		}
	}
	g.add(0)
	<-begun
	for _, n := range numbers {
		g.add(n)
	}
	close(held)
	g.running.Wait()
	return got
}

func TestGather(t *testing.T) {
	size := func(n int) int { return n }
	for name, test := range map[string]struct {
		g    *gather[int]
		want [][]int
	}{
		"all that came": {&gather[int]{most: 9}, [][]int{{0}, {1, 2, 3, 4, 5}}},
		"at most two":   {&gather[int]{most: 2}, [][]int{{0}, {1, 2}, {3, 4}, {5}}},
		"a full room":   {&gather[int]{most: 9, size: size, room: 3}, [][]int{{0}, {1, 2}, {3}, {4}, {5}}},
		"patient":       {&gather[int]{most: 2, many: 2, plenty: 2, patience: time.Millisecond}, [][]int{{0}, {1, 2}, {3, 4}, {5}}},
	} {
		if got := groups(t, test.g, 1, 2, 3, 4, 5); !slices.EqualFunc(got, test.want, slices.Equal) {
			t.Errorf("%s: got groups %v, want %v", name, got, test.want)
		}
	}
}

// After a group of many the next one waits for plenty, and no longer.
func TestGatherWaitsForPlenty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan []int, 3)
		first := make(chan struct{})
		g := &gather[int]{most: 9, many: 2, plenty: 4, patience: time.Hour}
		g.do = func(group []int) {
			if group[0] == 0 {
				<-first
			}
			done <- slices.Clone(group)
		}
		g.add(0)
		synctest.Wait()
		for n := 1; n < 4; n++ {
			g.add(n)
		}
		close(first)
		<-done
		<-done // of 1, 2, 3, which are many
		begun := time.Now()
		for n := 4; n < 8; n++ {
			g.add(n)
		}
		if got, took := <-done, time.Since(begun); !slices.Equal(got, []int{4, 5, 6, 7}) || took != 0 {
			t.Errorf("got %v after %s, want 4 to 7 at once", got, took)
		}
		g.add(8)
		if got, took := <-done, time.Since(begun); !slices.Equal(got, []int{8}) || took != time.Hour {
			t.Errorf("got %v after %s, want 8 after an hour", got, took)
		}
		g.running.Wait()
	})
}

// Lookups in one group have each their own answer.
func TestLookUpInGroups(t *testing.T) {
	q := open(t, Config{})
	there, missing := testResult("i", 0, 1, 0), testResult("i", 1, 1, 0)
	put(t, q, there, 0)
	ask := func(jobs ...string) []bool {
		var group []*lookup
		for _, id := range jobs {
			group = append(group, &lookup{q.resultSubject("i", id), make(chan bool, 1)})
		}
		q.lookUp(group)
		var none []bool
		for _, l := range group {
			none = append(none, <-l.none)
		}
		return none
	}
	if got := ask(missing.Job, "other"); !slices.Equal(got, []bool{true, true}) {
		t.Errorf("two without a result: got none %v, want both", got)
	}
	if got := ask(missing.Job, there.Job); !slices.Equal(got, []bool{false, false}) {
		t.Errorf("one with a result: got none %v, want to look at both", got)
	}
	q.nc.Close()
	if got := ask(missing.Job); !slices.Equal(got, []bool{false}) {
		t.Errorf("no answer: got none %v, want to look", got)
	}
}
