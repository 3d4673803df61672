package main

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// How long etcd may take to answer; it is on the same machine.
const compactLimit = 30 * time.Second

// compact forgets all but the latest revision of etcd's keys, so that every watch and list that
// goes on from an older one is answered with 410 Gone.
func compact() int {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: etcd-compact ENDPOINT")
		return 2
	}
	revision, err := compactAll(os.Args[1])
	if err != nil {
		fmt.Fprintf(os.Stderr, "etcd-compact: %v\n", err)
		return 1
	}
	fmt.Println(revision)
	return 0
}

func compactAll(endpoint string) (int64, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: compactLimit})
	if err != nil {
		return 0, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), compactLimit)
	defer cancel()
	now, err := client.Get(ctx, "compact_rev_key")
	if err != nil {
		return 0, err
	}
	revision := now.Header.Revision
	// Physical: returns when the old revisions are gone and not only when they are marked.
	_, err = client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	return revision, err
}
