"""Attention backends over paged KV, behind one small seam."""
