package actors

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"

	"firezone-gateway/messages"
)

// keyPair is the gateway's WireGuard identity. It is never stored, and each
// reset makes another one.
type keyPair struct {
	epoch   messages.Epoch
	private [32]byte
	public  [32]byte
}

func newKeyPair(epoch messages.Epoch) (keyPair, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return keyPair{}, fmt.Errorf("make key pair: %w", err)
	}
	return keyPair{epoch, [32]byte(key.Bytes()), [32]byte(key.PublicKey().Bytes())}, nil
}

// PublicKey returns the key that clients know the gateway by.
func (p *Plane) PublicKey() [32]byte { return p.keys.load().public }

// rotateKeys gives the gateway another key pair, which all clients lose their
// sessions by. It does nothing once work has ended, so that what an incarnation
// left behind does not undo the work of the next one.
func (p *Plane) rotateKeys(work context.Context) error {
	p.rotating.Lock()
	defer p.rotating.Unlock()
	if err := work.Err(); err != nil {
		return err
	}
	next, err := newKeyPair(p.keys.load().epoch + 1)
	if err != nil {
		return err
	}
	if err := p.Tunnel.Rekey(next.private); err != nil {
		return err
	}
	p.keys.store(next)
	return nil
}
