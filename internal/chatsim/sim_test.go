package chatsim

import (
	"context"
	"fmt"
	"testing"

	"groupferry/internal/chat"
)

// start gives a running simulator and a client of it.
func start(t testing.TB, c Config) (*Sim, *chat.Client, string) {
	t.Helper()
	sim := New(c)
	url, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	client, err := chat.New(chat.Config{BaseURL: url, SDKAppID: DemoSDKAppID, SecretKey: DemoSecretKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return sim, client, url
}

// users makes n conversations with users.
func users(n int) []chat.Item {
	items := make([]chat.Item, n)
	for i := range items {
		items[i] = chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("user%04d", i)}
	}
	return items
}

func BenchmarkCall(b *testing.B) {
	for _, n := range []int{1, 20, 100} {
		b.Run(fmt.Sprintf("%d conversations", n), func(b *testing.B) {
			_, client, _ := start(b, Config{Rate: -1})
			request := chat.CreateRequest{FromAccount: "u", GroupName: "g", Items: users(n)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Create(context.Background(), request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
