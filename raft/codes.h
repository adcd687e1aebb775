/* codes - libraft's result codes and dust's. What has no counterpart is an error of the disk. Pure. */
#ifndef DUST_RAFT_CODES_H
#define DUST_RAFT_CODES_H

int code_of_raft(int raft_code); /* enum dust_code */
int code_to_raft(int code);

#endif
