package app

import (
	"testing"

	"groupferry/importer"
	"groupferry/internal/chat"
	"groupferry/internal/job"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// What may have been put there by a sync, for a call had no response, is removed by a mirror. So it is a leftover if it is
// there; what the API refused is somebody else's.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	conversation := func(id string, state importer.State) importer.GroupConversation {
		return importer.GroupConversation{Type: job.OneToOne, ID: id, State: state}
	}
	u := &UserList{
		PlannedUser: importer.PlannedUser{ID: "ann",
			Jobs: []job.Job{{FromAccount: "ann", GroupName: "g", Conversations: []job.Conversation{{Type: job.OneToOne, ID: "wanted", Line: 2}}}},
			Known: []importer.Group{{FromAccount: "ann", GroupName: "g", Conversations: []importer.GroupConversation{
				conversation("wanted", importer.Unsure), conversation("applied", importer.Applied), conversation("unsure", importer.Unsure),
				conversation("refused", importer.Refused), conversation("away", importer.Unsure),
			}}},
		},
		List: worker.List{Groups: []worker.Group{{Name: "g"}}},
	}
	for _, id := range []string{"wanted", "applied", "unsure", "refused", "another"} {
		u.List.Groups[0].Items = append(u.List.Groups[0].Items, chat.Item{Type: chat.OneToOne, ID: id})
	}
	var n Differences
	left := ""
	err := n.compare(u, []string{"in.csv"}, &queue.Night{Mirror: true}, func(d *Difference) error {
		left += d.Code + " " + d.ToAccount + "\n"
		return nil
	})
	if want := "leftover applied\nleftover unsure\n"; err != nil || left != want {
		t.Errorf("got %q, %v; want %q", left, err, want)
	}
	if want := (Differences{Wanted: 1, There: 1, Early: 1, Leftover: 2}); n != want {
		t.Errorf("got %+v, want %+v", n, want)
	}
}
