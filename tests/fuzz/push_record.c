/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any bytes as the record of a push. The head, the boot and the sums are made right here, for no fuzzer guesses them; which
 * of the words that change get a right one, the first byte says. What is taken must be bounded in all its parts: every text
 * ends, and no name leads elsewhere.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "vm/push_record.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

struct input {
    const uint8_t *bytes;
    size_t length;
};

static void take(struct input *input, void *to, size_t length)
{
    const size_t part = length < input->length ? length : input->length;
    memcpy(to, input->bytes, part);
    input->bytes += part;
    input->length -= part;
}

static void look(const struct push_record_layout *layout)
{
    const struct push_record record = {.layout = (struct push_record_layout *)(uintptr_t)layout};
    const struct push_record_sealed *sealed = &layout->sealed;
    assert(strlen(sealed->job) <= LIMIT_NAME_BYTES && strlen(sealed->bitmap) <= LIMIT_NAME_BYTES);
    assert(strlen(push_record_end(&record)->reason) < LIMIT_ERROR_BYTES);
    assert(strlen(layout->cut.snapshot) < UUID_TEXT_BYTES && strlen(layout->cut.reason) < LIMIT_ERROR_BYTES);
    assert(push_record_state(&record) <= PUSH_RECORD_CONCLUDED && push_record_speed(&record) <= THROTTLE_RATE_MAX);
    for (unsigned i = 0; i < sealed->disk_count; i++) {
        const struct target_note *note = &layout->progress[i].note;
        assert(strlen(push_record_where(&record, i)) < LIMIT_PUSH_TEXT_BYTES);
        assert(!strchr(sealed->disks[i].name, '/') && sealed->disks[i].size_bytes <= LIMIT_DISK_BYTES);
        assert(target_note_stage(note) >= 0);
        assert(!note->created || target_note_stage(note) == TARGET_UNTOUCHED || !strchr(note->nonce, '/'));
    }
}

/* Words as somebody would have stored them. */
static void seal_words(struct push_record_layout *layout, uint8_t wanted)
{
    uint32_t word;
    for (unsigned i = 0; i < LIMIT_DISKS && wanted & 1; i++) {
        struct push_record_progress *progress = &layout->progress[i];
        word = (uint32_t)atomic_load(&progress->note.stage.word);
        target_note_store(&progress->note, (enum target_stage)(word % 4));
        target_written_begin(&progress->written);
        if (wanted & 2)
            push_record_note_released(progress);
    }
    struct push_record record = {.layout = layout};
    if (wanted & 4) {
        push_record_note_paused(&record, wanted & 8);
        push_record_note_cancelled(&record, wanted & 16);
    }
    word = (uint32_t)atomic_load(&layout->state.word);
    if (wanted & 64)
        sealed_store(&layout->state, push_record_state_salt(layout, word), word);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static const uint8_t boot[BOOT_ID_BYTES];
    static struct push_record_layout none;
    const size_t whole = (sizeof none + 4 * KIB - 1) / (4 * KIB) * (4 * KIB);
    struct push_record_layout *layout = calloc(1, whole);
    struct snapshot_table_disk disks[LIMIT_DISKS];
    struct input input = {bytes, length};
    struct error err = {0};
    uint8_t wanted = 0, disk_count = 0, text_bytes = 0;
    assert(layout);
    /* Byte by byte what matters, so that a short input says something. */
    take(&input, &wanted, 1);
    take(&input, &disk_count, 1);
    take(&input, &text_bytes, 1);
    memcpy(layout->magic, "FLEECEPJ", 8);
    layout->version = 3;
    layout->sealed.disk_count = disk_count;
    layout->sealed.text_bytes = disk_count == 255 ? UINT32_MAX : text_bytes;
    take(&input, layout->texts, text_bytes);
    take(&input, layout->sealed.job, sizeof layout->sealed.job);
    take(&input, layout->sealed.bitmap, sizeof layout->sealed.bitmap);
    for (unsigned i = 0; i < disk_count && i < LIMIT_DISKS; i++) {
        take(&input, &layout->sealed.disks[i].name, 4);
        take(&input, &layout->sealed.disks[i].where_at, 1);
        take(&input, &layout->progress[i].note, sizeof layout->progress[i].note);
    }
    take(&input, (char *)&layout->state,
         offsetof(struct push_record_layout, progress) - offsetof(struct push_record_layout, state));
    seal_words(layout, wanted);
    if (layout->sealed.text_bytes <= LIMIT_PUSH_TEXT_BYTES)
        layout->sum = crc32c(crc32c(0, &layout->sealed, sizeof layout->sealed), layout->texts,
                             layout->sealed.text_bytes);
    if (push_record_check(layout, whole, boot, &err) == 0)
        look(layout);
    else
        assert(err.text[0]);
    (void)push_record_owners(layout, whole, disks);
    free(layout);
    return 0;
}
